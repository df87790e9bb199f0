"""Encoders, frozen parts and losses in a recipe: short forms, and what does not go together."""

import json
from typing import Any

import pytest

from muomni.config import AudioConfig, Recipe, VisionConfig, encoder_configs, parse, recipe_schema
from muomni.config.loader import merge
from muomni.config.recipe_model import AudioSpec, VisionSpec
from muomni.errors import ConfigError

BASE: dict[str, Any] = {"model": {"preset": "nano"}, "data": {"train": "a.jsonl", "seq_len": 64}, "max_steps": 100}


def read(**changes: Any) -> Recipe:
    return parse(Recipe, merge(BASE, changes), "test")


@pytest.mark.parametrize("value", [True, {}])
def test_true_takes_the_presets_encoders(value: object) -> None:
    model = read(model={"vision": value, "audio": value}).model
    assert (model.new_vision(), model.new_audio()) == encoder_configs("nano")


@pytest.mark.parametrize("value", [False, None])
def test_false_and_null_leave_them_out(value: object) -> None:
    model = read(model={"vision": value, "audio": value}).model
    assert (model.new_vision(), model.new_audio()) == (None, None)


def test_an_object_changes_the_preset() -> None:
    model = read(model={"vision": {"hidden_size": 48, "projection_dim": 24}, "audio": {"ctc": True}}).model
    vision, audio = encoder_configs("nano")
    assert model.new_vision() == vision.replace(hidden_size=48, projection_dim=24)
    assert model.new_audio() == audio.replace(ctc=True)


@pytest.mark.parametrize(("spec", "config"), [(VisionSpec, VisionConfig), (AudioSpec, AudioConfig)])
def test_every_size_of_an_encoder_can_be_changed(spec: type[Any], config: type[Any]) -> None:
    assert set(spec.model_fields) - {"from_"} == set(config.model_fields) - {"kind"}


def test_a_stored_recipe_reads_as_the_same() -> None:
    recipe = read(
        model={"vision": True, "audio": {"from": "whisper", "ctc": True}}, freeze=["vision"], losses={"ctc": 0.3}
    )
    stored = json.loads(json.dumps(recipe.model_dump(mode="json", exclude_none=True, by_alias=True)))
    assert parse(Recipe, stored, "stored") == recipe
    import jsonschema

    jsonschema.Draft202012Validator(recipe_schema()).validate(stored)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ["vision"]}, ["freeze", "vision", "it has thinker"]),
        ({"model": {"audio": True}, "freeze": ["audio", "vision_projector"]}, ["vision_projector", "audio_projector"]),
        ({"freeze": ["eyes"]}, ["freeze", "eyes", "vision_projector"]),
        ({"freeze": ["thinker"]}, ["at least one must be trainable"]),
        (
            {"model": {"vision": True}, "freeze": ["vision_projector", "thinker", "vision"]},
            ["at least one must be trainable"],
        ),
        ({"losses": {"ctc": 0.3}}, ["losses.ctc", "0.3", '"audio": {"ctc": true}']),
        ({"model": {"audio": True}, "losses": {"ctc": 0.3}}, ["losses.ctc", '"ctc": true']),
        ({"model": {"vision": True}, "losses": {"contrastive": 1.0}}, ["losses.contrastive", "projection_dim"]),
        (
            {"model": {"audio": {"ctc": True}}, "losses": {"ctc": 0.3}, "freeze": ["audio"]},
            ["losses.ctc", "frozen", "set it to 0"],
        ),
        ({"losses": {"ctc": -1}}, ["losses.ctc", "-1"]),
        ({"losses": {"clip": 1}}, ["losses.clip"]),
        ({"model": {"vision": "yes"}}, ["model.vision", "yes", "must be true, or an object"]),
        ({"model": {"vision": {"hidden_sise": 4}}}, ["model.vision.hidden_sise"]),
        ({"model": {"vision": {"hidden_size": 33}}}, ["hidden_size", "33", "multiple of num_attention_heads"]),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read(**changes)
    for word in words:
        assert word in str(error.value)
