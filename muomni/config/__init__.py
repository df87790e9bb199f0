"""Frozen, validated configurations. Read `model` and `recipe` first."""

from muomni.config.base import parse
from muomni.config.encoders import AudioConfig, SiglipConfig, VisionConfig, WhisperConfig
from muomni.config.loader import bundled_recipes, load_recipe, read_json
from muomni.config.model import PRESET_NAMES, OmniConfig, encoder_configs, preset
from muomni.config.recipe import Recipe
from muomni.config.recipe_data import AnySource, DataSpec, SourceSpec, SpeechDataSpec, SyntheticSpec, TokenizerSpec
from muomni.config.schema import recipe_schema
from muomni.config.thinker import ThinkerConfig

__all__ = [
    "PRESET_NAMES",
    "AnySource",
    "AudioConfig",
    "DataSpec",
    "OmniConfig",
    "Recipe",
    "SiglipConfig",
    "SourceSpec",
    "SpeechDataSpec",
    "SyntheticSpec",
    "ThinkerConfig",
    "TokenizerSpec",
    "VisionConfig",
    "WhisperConfig",
    "bundled_recipes",
    "encoder_configs",
    "load_recipe",
    "parse",
    "preset",
    "read_json",
    "recipe_schema",
]
