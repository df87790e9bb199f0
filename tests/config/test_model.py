"""Presets, and what a configuration promises."""

import pytest
from pydantic import ValidationError

from muomni.config import PRESET_NAMES, Recipe, ThinkerConfig, preset
from muomni.config.recipe_model import ModelSpec, ThinkerOverrides
from muomni.errors import ConfigError

# `base` has the shape of Qwen3-0.6B, whose 596,049,920 parameters anybody can count.
PARAMETERS = {
    "nano": 622_976,
    "tiny": 12_588_672,
    "small": 81_809_664,
    "base": 596_049_920,
    "12m": 12_126_976,
    "100m": 100_094_208,
}


def test_presets_have_the_stated_sizes() -> None:
    assert {name: preset(name).thinker.num_parameters() for name in PRESET_NAMES} == PARAMETERS


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="there are nano, tiny, small, base"):
        preset("huge")  # type: ignore[arg-type]


def test_configurations_are_frozen() -> None:
    thinker = preset("nano").thinker
    with pytest.raises(ValidationError, match="frozen"):
        thinker.head_dim = 4  # type: ignore[misc]
    with pytest.raises(ValidationError, match="must be even"):
        thinker.replace(head_dim=3)
    assert thinker.replace(head_dim=4).head_dim == 4
    assert thinker.head_dim == 16


def test_overrides_know_every_field_with_its_limits() -> None:
    assert list(ThinkerOverrides.model_fields) == list(ThinkerConfig.model_fields)
    for name in ThinkerConfig.model_fields:
        if name != "tie_word_embeddings":
            with pytest.raises(ValidationError):
                ThinkerOverrides.model_validate({name: -1})


def test_model_spec_builds_the_preset_with_changes() -> None:
    spec = ModelSpec(preset="nano", thinker=ThinkerOverrides.model_validate({"num_hidden_layers": 3}))
    built = spec.build(vocab_size=500).thinker
    assert (built.num_hidden_layers, built.vocab_size, built.hidden_size) == (3, 500, 64)


def test_a_printed_recipe_reads_back() -> None:
    recipe = Recipe.model_validate({"data": {"train": ["a", {"path": "b"}]}, "epochs": 2})
    assert Recipe.model_validate_json(recipe.model_dump_json(by_alias=True)) == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True)) == recipe
