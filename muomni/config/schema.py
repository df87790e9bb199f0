"""The JSON Schema of recipes, for editors: they complete keys, show the documentation and mark mistakes."""

import ast
import inspect
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from muomni.config.base import Frozen, Overrides
from muomni.config.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file.

    It knows less than `load_recipe`: conditions between keys, such as heads that do not divide, are
    checked on loading.
    """
    schema = Recipe.model_json_schema(schema_generator=_WithFieldDocs)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    # A file need not be whole: the recipe it extends and the command line fill in the rest.
    for part in (schema, schema["$defs"]["DataSpec"], schema["$defs"]["SpeechDataSpec"]):
        part.pop("required", None)
    extends = {"type": "string", "description": "A recipe, by path or bundled name, over which this one is laid."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return schema


class _WithFieldDocs(GenerateJsonSchema):
    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        model = schema["cls"]
        docs = _field_docs(model)
        for name, field in model.model_fields.items():
            if name in docs:
                result["properties"][field.alias or name]["description"] = docs[name]
        return result


def _field_docs(model: type[Any]) -> dict[str, str]:
    """The string under each field of a configuration class, inherited and overridden ones included.

    pydantic's own `use_attribute_docstrings` reads the sources when the classes are made, which costs each command
    65 to 160 ms at its start; only the schema needs them.
    """
    docs: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if "config" in vars(part) and issubclass(part, Overrides):  # made by `Overrides[...]`: it has no source
            docs |= _field_docs(part.config)
        elif issubclass(part, Frozen):
            (definition,) = ast.parse(inspect.getsource(part)).body
            for field, text in pairwise(getattr(definition, "body", ())):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                        docs[name] = " ".join(doc.split())
    return docs
