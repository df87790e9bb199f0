"""The frozen base of every configuration and the one place where validation errors become words."""

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from muomni.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error: no option is ever silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes`; unlike `model_copy`, every check runs again."""
        return type(self).model_validate(self.model_dump(exclude_unset=True) | changes)


def parse(model: type[ModelT], values: Any, origin: str) -> ModelT:
    """Validates `values` as `model`.

    Raises:
        ConfigError: one error for all problems, each with key, value and what is allowed;
            `origin` (a file name, usually) says where.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(model, error, origin)) from None


def _describe(model: type[BaseModel], error: ValidationError, origin: str) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            message = "unknown key" + (f"; known here: {', '.join(sorted(known))}" if known else "")
        lines.append(f"{origin}: {key} = {_short(problem.get('input'))}: {message}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the nested model at `path`; empty when `path` leaves the models."""
    current: Any = model
    for part in path:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        field = current.model_fields.get(str(part))
        if field is None:
            return []
        current = _model_in(field.annotation)
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
