"""A new model of preset sizes for a tokenizer."""

from dataclasses import astuple
from typing import TYPE_CHECKING

from muomni.config import AudioConfig, OmniConfig, VisionConfig
from muomni.config.model import PresetName, encoder_configs, preset

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


def new_config(
    name: PresetName,
    vision: bool | VisionConfig,
    audio: bool | AudioConfig,
    tokenizer: "Tokenizer | None",
) -> OmniConfig:
    """A preset with encoders.

    Args:
        name: of the preset.
        vision, audio: True takes the encoder that goes with the preset.
        tokenizer: gives the ids of the placeholders; None takes those of a tokenizer that was trained here.

    Raises:
        PromptError: the tokenizer has no placeholder.
    """
    from muomni.data.text.special_tokens import SPECIAL

    own = encoder_configs(name)
    seen = own[0] if vision is True else vision or None
    heard = own[1] if audio is True else audio or None
    names = list(astuple(SPECIAL))

    def place(token: str) -> int:
        return names.index(token) if tokenizer is None else tokenizer.id_of(token)

    config = preset(name)
    if seen is None and heard is None:
        return config
    return config.with_encoders(
        seen,
        heard,
        None if seen is None else place(SPECIAL.image),
        None if heard is None else place(SPECIAL.audio),
    )
