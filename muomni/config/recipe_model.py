"""The model in a recipe: a preset with changes, or the weights of an earlier run."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict
from muomni.config.model import (
    AudioConfig,
    OmniConfig,
    PresetName,
    ThinkerConfig,
    VisionConfig,
    encoder_configs,
    preset,
)
from muomni.config.talker import TalkerSpec


class ThinkerOverrides(Frozen):
    """Fields of `ThinkerConfig` that a recipe changes from the preset; see there for their meaning."""

    vocab_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_hidden_layers: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_position_embeddings: PositiveInt | None = None
    rope_theta: Positive | None = None
    rms_norm_eps: Positive | None = None
    tie_word_embeddings: bool | None = None
    dropout: Probability | None = None
    initializer_range: Positive | None = None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Those of `ThinkerConfig`."""
        return ThinkerConfig.field_docs()


class _Encoder(Frozen):
    """What both encoders have in common in a recipe."""

    model_config = ConfigDict(validate_by_name=True)

    from_: str | None = Field(default=None, alias="from", min_length=1)
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_hidden_layers: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    dropout: Probability | None = None
    rms_norm_eps: Positive | None = None
    rope_theta: Positive | None = None
    initializer_range: Positive | None = None

    @property
    def changes(self) -> dict[str, object]:
        """The fields that are given, but for `from`."""
        return self.model_dump(exclude_none=True, exclude={"from_"})


class VisionSpec(_Encoder):
    """The vision encoder in a recipe: fields of `VisionConfig` that differ from the preset's; see there.

    Attributes:
        from_: a Hugging Face folder of a SigLIP-style model whose vision encoder is taken; its sizes stay.
    """

    patch_size: PositiveInt | None = None
    pixel_shuffle_factor: PositiveInt | None = None
    min_tokens: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    projection_dim: PositiveInt | None = None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Those of `VisionConfig` besides its own."""
        return _known(cls, VisionConfig.field_docs() | super().field_docs())


class AudioSpec(_Encoder):
    """The audio encoder in a recipe: fields of `AudioConfig` that differ from the preset's; see there.

    Attributes:
        from_: a Hugging Face folder of a Whisper-style model whose encoder is taken; its sizes stay.
    """

    num_mel_bins: PositiveInt | None = None
    chunk_tokens: PositiveInt | None = None
    max_seconds: Positive | None = None
    ctc: bool | None = None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Those of `AudioConfig` besides its own."""
        return _known(cls, AudioConfig.field_docs() | super().field_docs())


def _known(spec: type[Frozen], docs: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in docs.items() if name in spec.model_fields}


def _as_encoder(value: object) -> object:
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, (dict, _Encoder)):
        return value
    raise PydanticCustomError("encoder", "must be true, or an object with what differs from the preset")


class ModelSpec(Frozen):
    """Which model to train: a preset with changes, or the weights of an earlier run.

    Attributes:
        preset: where the sizes come from.
        init_from: a run or checkpoint folder whose weights, sizes and tokenizer are taken instead. Encoders that
            it lacks are new, with the sizes of `preset` "tiny" unless they say otherwise.
        thinker: changes to the preset; with `init_from` only `dropout` may be changed.
        vision: true for the preset's vision encoder, or what differs from it. With `init_from`, the folder's
            own is kept, also without this; then `dropout`, the numbers of tokens and the contrastive head may differ.
        audio: likewise for the audio encoder, with `dropout`, `max_seconds` and the CTC head.
        talker: what speaks, and the codec of its speech. With `init_from`, the folder's own is kept, also without
            this; then `dropout`, `code_corruption`, `conditioning_dropout` and `stop_weight` may differ.
    """

    preset: PresetName | None = None
    init_from: str | None = None
    thinker: ThinkerOverrides = ThinkerOverrides()
    vision: Annotated[
        VisionSpec | None, BeforeValidator(_as_encoder, json_schema_input_type=bool | VisionSpec | None)
    ] = None
    audio: Annotated[AudioSpec | None, BeforeValidator(_as_encoder, json_schema_input_type=bool | AudioSpec | None)] = (
        None
    )
    talker: TalkerSpec | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if (self.preset is None) == (self.init_from is None):
            raise conflict("preset", self.preset, 'give exactly one of "preset" and "init_from"')
        if self.init_from is not None:
            for name, value in self.thinker.model_dump(exclude_none=True, exclude={"dropout"}).items():
                raise conflict(f"thinker.{name}", value, 'remove it: "init_from" fixes the sizes')
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
        thinker = base.thinker.model_dump() | self.thinker.model_dump(exclude_none=True) | more
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
