"""The frozen base of every configuration, and `parse`, which turns plain values into one."""

import inspect
import re
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from muomni.config.validation_errors import Layer, in_words
from muomni.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, so that no option is ever silently ignored.

    Types are strict (`"8"` and `true` are no number; a whole number does for a fraction), but a list
    does for a tuple where a field says so, since JSON has no tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes`; unlike `model_copy`, every check runs again."""
        return type(self).model_validate(self.model_dump(by_alias=True, exclude_unset=True) | changes)

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """What the docstring says under "Attributes:" about each field."""
        doc = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", doc, flags=re.MULTILINE)
        return {name: re.sub(r"\s+", " ", text).strip() for name, text in entries}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Adds the documentation of class and fields, which editors show, to the JSON Schema."""
        schema = handler(core_schema)
        target = handler.resolve_ref_schema(schema)
        target["description"] = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:")[0]
        for name, text in cls.field_docs().items():
            target["properties"][cls.model_fields[name].alias or name]["description"] = text
        return schema


def conflict(key: str, value: object, message: str) -> PydanticCustomError:
    """The error a validator raises when `key`, valid by itself, does not go with the rest.

    Args:
        key: relative to the configuration whose validator raises, such as `schedule.warmup_steps`.
        value: what `key` is.
        message: what is allowed.
    """
    return PydanticCustomError(
        "conflict", "{key} = {shown}: {message}", {"key": key, "shown": str(value), "value": value, "message": message}
    )


def parse(model: type[ModelT], values: Any, origin: str, layers: tuple[Layer, ...] = ()) -> ModelT:
    """Validates `values` as `model`.

    Args:
        model: the configuration class.
        values: plain values as JSON gives them.
        origin: where they come from, usually a file name.
        layers: when `values` was merged from several places, each place's name and part, the last one
            strongest; an error then names the place its value came from instead of `origin`.

    Raises:
        ConfigError: one error for all problems, one line each: origin, key, value, what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(in_words(error, model, origin, layers)) from None
