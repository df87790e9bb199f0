"""The model in a recipe: a preset with changes, or the weights of an earlier run."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from muomni.config.base import Frozen, Overrides, conflict
from muomni.config.encoders import AudioConfig, VisionConfig
from muomni.config.model import OmniConfig, PresetName, encoder_configs, preset
from muomni.config.talker import TalkerSpec
from muomni.config.thinker import ThinkerConfig


class ThinkerOverrides(Overrides[ThinkerConfig]):
    """Fields of `ThinkerConfig` that a recipe changes from the preset."""


class VisionSpec(Overrides[VisionConfig]):
    """The vision encoder in a recipe: fields of `VisionConfig` that differ from the preset's."""

    model_config = ConfigDict(validate_by_name=True)

    from_: str | None = Field(default=None, alias="from", min_length=1)
    """A Hugging Face folder of a SigLIP-style model whose vision encoder is used, with its sizes."""


class AudioSpec(Overrides[AudioConfig]):
    """The audio encoder in a recipe: fields of `AudioConfig` that differ from the preset's."""

    model_config = ConfigDict(validate_by_name=True)

    from_: str | None = Field(default=None, alias="from", min_length=1)
    """A Hugging Face folder of a Whisper-style model whose encoder is used, with its sizes."""


def _as_encoder(value: object) -> object:
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, (dict, Overrides)):
        return value
    raise PydanticCustomError("encoder", "must be true, or an object with the fields that differ from the preset")


class ModelSpec(Frozen):
    """Which model to train: a preset with changes, or the weights of an earlier run."""

    preset: PresetName | None = None
    """Preset of the sizes."""
    init_from: str | None = None
    """A run or checkpoint folder whose weights, sizes and tokenizer are used instead. Encoders that it lacks are new,
    with the sizes of preset "tiny" unless given.
    """
    thinker: ThinkerOverrides = ThinkerOverrides()
    """Changes to the preset; with `init_from` only `dropout` may be changed."""
    vision: Annotated[
        VisionSpec | None, BeforeValidator(_as_encoder, json_schema_input_type=bool | VisionSpec | None)
    ] = None
    """True for the preset's vision encoder, or the fields that differ from it. With `init_from` the folder's encoder is
    always kept; only `dropout`, the numbers of tokens and the contrastive head may differ.
    """
    audio: Annotated[AudioSpec | None, BeforeValidator(_as_encoder, json_schema_input_type=bool | AudioSpec | None)] = (
        None
    )
    """Likewise for the audio encoder; with `init_from` only `dropout`, `max_seconds` and the CTC head may differ."""
    talker: TalkerSpec | None = None
    """The Talker and the codec of its speech. With `init_from` the folder's Talker is always kept; only `dropout`,
    `code_corruption`, `conditioning_dropout` and `stop_weight` may differ.
    """

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if (self.preset is None) == (self.init_from is None):
            raise conflict("preset", self.preset, 'give exactly one of "preset" and "init_from"')
        if self.init_from is not None:
            for name in self.thinker.changes.keys() - {"dropout"}:
                raise conflict(f"thinker.{name}", self.thinker.changes[name], 'remove it: "init_from" fixes the sizes')
        if self.preset is not None:
            self.build()
            self.new_vision()
            self.new_audio()
            if self.talker is not None and self.talker.codec is None:
                raise conflict(
                    "talker.codec", None, "name the run or folder of a trained codec (muomni train codec-tiny)"
                )
        return self

    def build(self, **more: object) -> OmniConfig:
        """The preset's Thinker with the recipe's changes, then `more`; no encoders. Only for `preset`."""
        if self.preset is None:
            raise ValueError("a model taken from a folder has its own configuration")
        base = preset(self.preset)
        thinker = base.thinker.model_dump() | self.thinker.changes | more
        return base.replace(thinker=thinker)

    def new_vision(self) -> VisionConfig | None:
        """The preset's vision encoder with the recipe's changes; None where none is asked for, or one of a folder."""
        if self.vision is None or self.vision.from_ is not None:
            return None
        return encoder_configs(self.preset or "tiny")[0].replace(**self.vision.changes)

    def new_audio(self) -> AudioConfig | None:
        """The preset's audio encoder with the recipe's changes; None where none is asked for, or one of a folder."""
        if self.audio is None or self.audio.from_ is not None:
            return None
        return encoder_configs(self.preset or "tiny")[1].replace(**self.audio.changes)
