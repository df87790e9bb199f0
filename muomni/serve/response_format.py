"""`response_format` of a chat: the reply is a text, any JSON object, or follows a JSON schema."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator


class JsonSchema(BaseModel):
    """A schema and its name.

    Attributes:
        name: of the schema.
        description: of what it is for.
        schema_: in JSON, `schema`; without one the reply is any JSON object.
        strict: the reply follows the schema with and without it.
    """

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the reply has to be.

    Attributes:
        type: text, json_object, or json_schema.
        json_schema: with the type of that name.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type json_schema needs the key json_schema")
        return self

    @property
    def grammar(self) -> dict[str, Any] | None:
        """The JSON schema that the reply follows, or None."""
        if self.type == "text":
            return None
        schema = None if self.json_schema is None or self.type == "json_object" else self.json_schema.schema_
        return {"type": "object"} if schema is None else schema
