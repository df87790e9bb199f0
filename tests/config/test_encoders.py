"""Encoders of Hugging Face folders in a model's configuration: told apart by their kind."""

import json
from typing import Any

import pytest

from muomni.config import AudioConfig, OmniConfig, SiglipConfig, VisionConfig, WhisperConfig, parse, preset
from muomni.errors import ConfigError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ENCODERS = [
    (VisionConfig(**SIZES), AudioConfig(**SIZES)),
    (SiglipConfig(kind="siglip", **SIZES), WhisperConfig(kind="whisper", **SIZES)),
    (SiglipConfig(kind="siglip", **SIZES, pixel_shuffle_factor=3, projection_dim=8), None),
    (None, WhisperConfig(kind="whisper", **SIZES, num_mel_bins=128, ctc=True)),
]


@pytest.mark.parametrize(("vision", "audio"), ENCODERS)
def test_encoders_go_through_a_file(vision, audio):
    config = preset("nano").with_encoders(vision, audio, image_token_id=1, audio_token_id=2)
    values = json.loads(json.dumps(config.model_dump(mode="json")))
    assert parse(OmniConfig, values, "config.json") == config
    tokens: dict[str, Any] = {"image_token_id": config.image_token_id, "audio_token_id": config.audio_token_id}
    changed = OmniConfig(thinker=config.thinker, vision=vision, audio=audio, **tokens).replace(eos_token_ids=(3,))
    assert (changed.vision, changed.audio) == (vision, audio)


def test_without_a_kind_it_is_our_own():
    values = preset("nano").model_dump(mode="json")
    values |= {"vision": SIZES, "audio": SIZES, "image_token_id": 1, "audio_token_id": 2}
    config = parse(OmniConfig, values, "config.json")
    assert isinstance(config.vision, VisionConfig)
    assert isinstance(config.audio, AudioConfig)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vision", SIZES | {"kind": "clip"}, """vision.kind = "clip": must be 'vit', 'siglip'"""),
        (
            "vision",
            SIZES | {"kind": "siglip", "rope_theta": 1.0},
            "vision.rope_theta = 1.0: unknown key here; did you mean",
        ),
        ("vision", SIZES | {"kind": "siglip", "hidden_size": 30}, "vision.hidden_size = 30: must be a multiple of"),
        ("vision", SIZES | {"kind": "siglip", "min_tokens": 65}, "vision.min_tokens = 65: must be at most max_tokens"),
        (
            "audio",
            SIZES | {"kind": "whisper", "chunk_tokens": 3},
            "audio.chunk_tokens = 3: unknown key; known here: activation,",
        ),
    ],
)
def test_what_is_wrong_is_named(key, value, words):
    values = preset("nano").model_dump(mode="json") | {key: value, "image_token_id": 1}
    with pytest.raises(ConfigError) as error:
        parse(OmniConfig, values, "config.json")
    assert words in str(error.value)


def test_widths_that_projectors_get():
    assert SiglipConfig(kind="siglip", **SIZES, pixel_shuffle_factor=3).output_size == 9 * 32
    assert WhisperConfig(kind="whisper", **SIZES).output_size == 4 * 32
