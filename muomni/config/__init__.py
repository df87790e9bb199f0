"""Frozen, validated configurations. Read `model` and `recipe` first."""

from muomni.config.base import parse
from muomni.config.load import load_recipe, read_json
from muomni.config.model import OmniConfig, ThinkerConfig, preset
from muomni.config.recipe import DataSpec, Recipe, SourceSpec, TokenizerSpec

__all__ = [
    "DataSpec",
    "OmniConfig",
    "Recipe",
    "SourceSpec",
    "ThinkerConfig",
    "TokenizerSpec",
    "load_recipe",
    "parse",
    "preset",
    "read_json",
]
