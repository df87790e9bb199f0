"""Model configurations and the presets. Field names follow Hugging Face's `Qwen3Config`."""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from muomni.config.base import Frozen, conflict
from muomni.config.codec import CodecConfig
from muomni.config.encoders import (
    AudioConfig,
    AudioEncoderConfig,
    SiglipConfig,
    VisionConfig,
    VisionEncoderConfig,
    WhisperConfig,
)
from muomni.config.talker import TalkerConfig
from muomni.config.thinker import ThinkerConfig
from muomni.errors import ConfigError

PresetName = Literal["nano", "tiny", "small", "base", "12m", "100m"]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)


def _kind(default: str) -> Discriminator:
    """Tells the encoders of a field apart by `kind`; `default` where it is left out."""

    def of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    return Discriminator(of)


class OmniConfig(Frozen):
    """A whole model as `config.json` holds it."""

    model_type: Literal["muomni"] = "muomni"
    """Always `"muomni"`; it is how a folder is told from a plain Qwen3 one."""
    thinker: ThinkerConfig
    """The language model."""
    eos_token_ids: tuple[int, ...] = Field(default=(), strict=False)
    """Ids that end a reply."""
    vision: (
        Annotated[Annotated[VisionConfig, Tag("vit")] | Annotated[SiglipConfig, Tag("siglip")], _kind("vit")] | None
    ) = None
    """The vision encoder, or null."""
    audio: (
        Annotated[Annotated[AudioConfig, Tag("conv")] | Annotated[WhisperConfig, Tag("whisper")], _kind("conv")] | None
    ) = None
    """The audio encoder, or null."""
    image_token_id: int | None = None
    """Placeholder of a picture's tokens; needed with `vision`."""
    audio_token_id: int | None = None
    """Placeholder of a clip's tokens; needed with `audio`."""
    talker: TalkerConfig | None = None
    """The part that speaks, or null."""
    codec: CodecConfig | None = None
    """The codec of the speech; given exactly if `talker` is."""

    def __setattr__(self, name: str, value: Any) -> None:
        # `transformers.Trainer` says so of every model; this one caches only into the cache that a call is given.
        if (name, value) != ("use_cache", False):
            super().__setattr__(name, value)

    @model_validator(mode="after")
    def _talker_fits(self) -> "OmniConfig":
        if (self.talker is None) != (self.codec is None):
            raise conflict("codec", self.codec, "must be given exactly if talker is")
        if self.talker is None or self.codec is None:
            return self
        if self.talker.thinker_layer > self.thinker.num_hidden_layers:
            blocks = f"must be at most the Thinker's {self.thinker.num_hidden_layers} blocks"
            raise conflict("talker.thinker_layer", self.talker.thinker_layer, blocks)
        for name in ("num_codebooks", "codebook_size"):
            own, wanted = getattr(self.talker, name), getattr(self.codec, name)
            if own != wanted:
                raise conflict(f"talker.{name}", own, f"must be the codec's, {wanted}")
        return self

    @model_validator(mode="after")
    def _placeholders_fit(self) -> "OmniConfig":
        for encoder, name in (("vision", "image_token_id"), ("audio", "audio_token_id")):
            given, token = getattr(self, encoder), getattr(self, name)
            if (given is None) != (token is None):
                raise conflict(name, token, f"must be given exactly if {encoder} is")
            if token is not None and not 0 <= token < self.thinker.vocab_size:
                raise conflict(name, token, f"must be an id of the vocabulary of {self.thinker.vocab_size}")
        if self.image_token_id is not None and self.image_token_id == self.audio_token_id:
            raise conflict("audio_token_id", self.audio_token_id, "must differ from image_token_id")
        return self

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head sizes of all attention layers: the Thinker's, then those of the encoders and of the Talker."""
        parts = (self.thinker, self.vision, self.audio, self.talker)
        return tuple(part.head_dim for part in parts if part is not None)

    def with_encoders(
        self,
        vision: VisionEncoderConfig | None = None,
        audio: AudioEncoderConfig | None = None,
        image_token_id: int | None = None,
        audio_token_id: int | None = None,
    ) -> "OmniConfig":
        """The same with these encoders, in the place of any that were there.

        Args:
            vision: None for none.
            audio: None for none.
            image_token_id: of the tokenizer; not used without `vision`.
            audio_token_id: of the tokenizer; not used without `audio`.
        """
        return self.replace(
            vision=None if vision is None else vision.model_dump(),
            audio=None if audio is None else audio.model_dump(),
            image_token_id=None if vision is None else image_token_id,
            audio_token_id=None if audio is None else audio_token_id,
        )

    def with_speech(self, talker: TalkerConfig | None, codec: CodecConfig | None) -> "OmniConfig":
        """The same with this Talker and codec, or with none, in the place of any that were there."""
        return self.replace(
            talker=None if talker is None else talker.model_dump(),
            codec=None if codec is None else codec.model_dump(),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for libraries that expect a Hugging Face configuration; PEFT asks for tied embeddings."""
        return self.model_dump(mode="json") | {"tie_word_embeddings": self.thinker.tie_word_embeddings}

    def to_json_string(self) -> str:
        """`to_dict` as JSON, which loggers of `transformers.Trainer` write down."""
        return json.dumps(self.to_dict(), indent=2)


def preset(name: PresetName) -> OmniConfig:
    """The named preset.

    Raises:
        ConfigError: there is no such preset.
    """
    _check(name)
    width, hidden, layers, heads, kv_heads, head_dim, context, vocabulary = _PRESETS[name]
    return OmniConfig(
        thinker=ThinkerConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=context,
            rope_theta=1_000_000.0 if name == "base" else 10_000.0,
        )
    )


def encoder_configs(name: PresetName) -> tuple[VisionConfig, AudioConfig]:
    """Encoders whose sizes go with the named preset.

    Raises:
        ConfigError: there is no such preset.
    """
    _check(name)
    width, hidden, layers, heads = _ENCODERS[name]
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    patch = 8 if name == "nano" else 16
    return VisionConfig(patch_size=patch, **sizes), AudioConfig(**sizes)


def _check(name: str) -> None:
    if name not in PRESET_NAMES:
        raise ConfigError(f"no preset {name!r}: there are {', '.join(PRESET_NAMES)}")


# Width, width of the SwiGLU hidden layer, blocks, heads, heads of keys and values, width of a head, context, entries of
# the vocabulary.
# `base` is Qwen3-0.6B; 12m and 100m are the shapes of the tables in docs/LOG.md.
_PRESETS: dict[PresetName, tuple[int, int, int, int, int, int, int, int]] = {
    "nano": (64, 192, 2, 4, 2, 16, 256, 8192),
    "tiny": (384, 1024, 6, 6, 2, 64, 1024, 8192),
    "small": (768, 2048, 12, 12, 4, 64, 2048, 8192),
    "base": (1024, 3072, 28, 16, 8, 128, 40_960, 151_936),
    "12m": (256, 1024, 4, 4, 2, 64, 1024, 32_000),
    "100m": (768, 2048, 12, 12, 4, 64, 1024, 32_000),
}
# Width, width of the SwiGLU hidden layer, blocks, heads: of both encoders.
_ENCODERS: dict[PresetName, tuple[int, int, int, int]] = {
    "nano": (32, 64, 2, 2),
    "tiny": (192, 512, 6, 3),
    "small": (384, 1024, 12, 6),
    "base": (768, 2048, 12, 12),
    "12m": (192, 512, 6, 3),
    "100m": (384, 1024, 12, 6),
}
