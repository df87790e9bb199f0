"""The JSON Schema that editors use agrees with what is loaded."""

import json
from typing import Any

import jsonschema
import pytest

from muomni.config import bundled_recipes, read_json, recipe_schema
from muomni.config.loader import RECIPES


def problems(recipe: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    return [error.message for error in validator.iter_errors(recipe)]


def test_the_stored_schema_is_the_generated_one() -> None:
    stored = json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"))
    assert stored == recipe_schema(), "write it anew: muomni config schema --out muomni/recipes/recipe.schema.json"


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def test_every_key_is_explained() -> None:
    schema = recipe_schema()
    objects = {"Recipe": schema} | schema["$defs"]
    missing = [
        f"{name}.{key}"
        for name, part in objects.items()
        for key, field in part["properties"].items()
        if "description" not in field
    ]
    assert not missing


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_fit_it(name: str) -> None:
    recipe = read_json(bundled_recipes()[name])
    assert recipe["$schema"] == "./recipe.schema.json"
    assert problems(recipe) == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"extends": "text-tiny", "data": {"train": "a.txt"}},
        {"data": {"train": ["a.txt", {"path": "b", "format": "jsonl"}], "val": {"path": "c"}}},
        {"max_steps": 5, "optimizer": {"betas": [0.9, 0.99]}},
    ],
)
def test_it_accepts_partial_recipes_and_short_forms(recipe: dict[str, Any]) -> None:
    assert problems(recipe) == []


@pytest.mark.parametrize(
    "recipe",
    [{"batch_sise": 1}, {"batch_size": 0}, {"batch_size": "8"}, {"data": {"train": [5]}}, {"data": {"train": [{}]}}],
)
def test_it_marks_mistakes(recipe: dict[str, Any]) -> None:
    assert problems(recipe)
