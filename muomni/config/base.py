"""The frozen base of every configuration, and `parse`, which turns plain values into one."""

from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from muomni.config.validation_errors import Layer, in_words
from muomni.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
ConfigT = TypeVar("ConfigT", bound="Frozen")
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# A tag such as "en" or "en-gb".
LANGUAGE_PATTERN = r"^[a-z]{2,3}(-[a-z0-9]{1,8})*$"
Language = Annotated[str, Field(pattern=LANGUAGE_PATTERN)]


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, so that no option is ever silently ignored.

    Types are strict (`"8"` and `true` are no number; a whole number does for a fraction), but a list
    does for a tuple where a field says so, since JSON has no tuples. The string under a field documents it, also in
    the JSON Schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Fields that a recipe cannot change: see `Overrides`.
    fixed: ClassVar[frozenset[str]] = frozenset()

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes`; unlike `model_copy`, every check runs again."""
        return type(self).model_validate(self.model_dump(by_alias=True, exclude_unset=True) | changes)


class Overrides(Frozen, Generic[ConfigT]):
    """Changes to a configuration: a subclass of `Overrides[C]` has every field of `C` that is not `fixed`, or null.

    Types, limits and documentation of the fields are those of `C`. They are known at run time only, so code reads
    them from `changes`.
    """

    config: ClassVar[type[Frozen]]

    def __class_getitem__(cls, config: Any) -> Any:
        fields: dict[str, Any] = {
            name: (Annotated[field.annotation | None, *field.metadata, Field()], None)
            for name, field in config.model_fields.items()
            if name not in config.fixed
        }
        overrides = create_model(f"{config.__name__}Overrides", __base__=cls, **fields)
        overrides.config = config
        return overrides

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that are given."""
        return self.model_dump(include=set(self.config.model_fields), exclude_none=True)


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
