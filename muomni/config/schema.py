"""The JSON Schema of recipes, for editors: they complete keys, show the documentation and mark mistakes."""

from typing import Any

from muomni.config.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file.

    It knows less than `load_recipe`: conditions between keys, such as heads that do not divide, are
    checked on loading.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    # A file need not be whole: the recipe it extends and the command line fill in the rest.
    for part in (schema, schema["$defs"]["DataSpec"], schema["$defs"]["SpeechDataSpec"]):
        part.pop("required", None)
    extends = {"type": "string", "description": "A recipe, by path or bundled name, over which this one is laid."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return schema
