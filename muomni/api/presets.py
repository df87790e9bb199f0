"""A new model of preset sizes for a tokenizer."""

from dataclasses import astuple
from typing import TYPE_CHECKING, cast, get_args

from muomni.config import AudioConfig, OmniConfig, VisionConfig
from muomni.config.model import PresetName, encoder_configs, preset
from muomni.errors import ConfigError

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


def new_config(
    config: str | OmniConfig, vision: bool | VisionConfig, audio: bool | AudioConfig, tokenizer: "Tokenizer | None"
) -> OmniConfig:
    """A preset with encoders, or a whole configuration as it is.

    Args:
        config: a preset's name or a whole configuration.
        vision: with a preset: True takes the encoder that goes with it.
        audio: the same.
        tokenizer: gives the ids of the placeholders; None takes those of a tokenizer that was trained here.

    Raises:
        ConfigError: no such preset, or encoders beside a whole configuration.
        PromptError: the tokenizer has no placeholder.
    """
    from muomni.data.text.special_tokens import SPECIAL

    if not isinstance(config, str):
        if vision or audio:
            raise ConfigError("vision and audio go with a preset's name; a whole configuration says it by itself")
        return config
    if config not in get_args(PresetName):
        raise ConfigError(f"no preset {config!r}: there are {', '.join(get_args(PresetName))}")
    name = cast("PresetName", config)
    usual = encoder_configs(name)
    sees = usual[0] if vision is True else vision or None
    hears = usual[1] if audio is True else audio or None
    names = list(astuple(SPECIAL))

    def place(token: str) -> int:
        return names.index(token) if tokenizer is None else tokenizer.id_of(token)

    if sees is None and hears is None:
        return preset(name)
    image_id = None if sees is None else place(SPECIAL.image)
    audio_id = None if hears is None else place(SPECIAL.audio)
    return preset(name).with_encoders(sees, hears, image_id, audio_id)
