"""Sizes of the Talker, which turns text and the Thinker's states into codes of speech."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from muomni.config.base import Language, Overrides, Positive, PositiveInt, Probability, conflict
from muomni.config.codec import CodecConfig
from muomni.config.thinker import DecoderConfig, ThinkerConfig

Pattern = Literal["depth", "delay", "parallel"]
Voices = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1, max_length=256)]


class TalkerConfig(DecoderConfig):
    """The Talker: a decoder over frames of speech that reads the text at a pointer, which only moves forward."""

    hidden_size: PositiveInt = 384
    intermediate_size: PositiveInt = 1024
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 6
    num_key_value_heads: PositiveInt = 2
    head_dim: PositiveInt = 64
    thinker_layer: PositiveInt
    """The Talker reads the states behind this many of the Thinker's blocks; null in a recipe: half of them."""
    text_size: PositiveInt = 256
    """Width of the text encoder."""
    text_layers: PositiveInt = 4
    """Blocks of the text encoder."""
    text_kernel: int = Field(default=7, ge=1, le=31)
    """Units that a block's centred convolution spans; odd."""
    pattern: Pattern = "depth"
    """How the codes of a frame are predicted: `depth` one after the other inside the frame, `delay` code k of frame t
    at step t + k, `parallel` all at once.
    """
    depth_size: PositiveInt = 256
    """Width of the predictor inside a frame; for `depth` only."""
    depth_intermediate: PositiveInt = 512
    """Width of the hidden layers of its blocks; for `depth` only."""
    num_codebooks: int = Field(ge=1, le=32)
    """Codes of a frame, K; the codec's."""
    codebook_size: int = Field(ge=2, le=65_536)
    """Values of a code, V; the codec's."""
    max_advance: int = Field(default=8, ge=1, le=64)
    """Units that the pointer moves at most from one frame to the next."""
    voices: Voices = ("default",)
    """Names of the voices."""
    voice_languages: Annotated[tuple[Language, ...], Field(strict=False, min_length=1)] = ("en",)
    """Language of each voice, which decides how numbers, signs and abbreviations are said; one is for all voices."""
    code_corruption: Probability = 0.1
    """Share of input frames that training replaces by random codes, so that the Talker recovers from a wrong frame.
    """
    conditioning_dropout: Probability = 0.2
    """Probability that training replaces the Thinker's states of a sentence by zeros."""
    stop_weight: Positive = 5.0
    """Weight of a sentence's last frame in the loss of the moves."""

    fixed = frozenset({"num_codebooks", "codebook_size", "voices", "voice_languages"})

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.text_kernel % 2 == 0:
            raise conflict("text_kernel", self.text_kernel, "must be odd: the convolution is centred")
        if len(set(self.voices)) < len(self.voices):
            raise conflict("voices", ", ".join(self.voices), "must differ from each other")
        if len(self.voice_languages) not in (1, len(self.voices)):
            languages = ", ".join(self.voice_languages)
            raise conflict("voice_languages", languages, f"must be one for all voices, or {len(self.voices)}")
        return self

    def language(self, voice: int) -> str:
        """The language of a voice, given its number."""
        return self.voice_languages[voice if len(self.voice_languages) > 1 else 0]

    @property
    def lookahead(self) -> int:
        """Units ahead of its own that a place of the encoded text has seen."""
        return self.text_layers * (self.text_kernel - 1) // 2

    @property
    def stop(self) -> int:
        """The class of moves with which a sentence ends."""
        return self.max_advance + 1

    @property
    def num_moves(self) -> int:
        """Classes of moves: 0 to `max_advance`, and `stop`."""
        return self.max_advance + 2

    @property
    def flush(self) -> int:
        """Steps after a sentence's last frame until all its codes are there; 0 but for `delay`."""
        return self.num_codebooks - 1 if self.pattern == "delay" else 0

    @property
    def backbone(self) -> ThinkerConfig:
        """The decoder over frames as a Thinker's configuration: what blocks and caches ask for."""
        return ThinkerConfig(
            **self.model_dump(include=set(DecoderConfig.model_fields)),
            vocab_size=self.codebook_size,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )


class TalkerSpec(Overrides[TalkerConfig]):
    """A Talker to train; what is not given is as in `TalkerConfig`."""

    codec: str | None = Field(default=None, min_length=1)
    """Run or folder of a trained speech codec; needed unless the model starts from one that speaks."""
    from_thinker: bool = True
    """Start the Talker's blocks from the Thinker's last ones, where their sizes agree."""

    def build(self, thinker: ThinkerConfig, codec: CodecConfig, voices: Mapping[str, str]) -> TalkerConfig:
        """The configuration for a Thinker, a codec, and the names of voices with their languages."""
        values = {
            "thinker_layer": max(1, thinker.num_hidden_layers // 2),
            "num_codebooks": codec.num_codebooks,
            "codebook_size": codec.codebook_size,
            "voices": tuple(voices),
            "voice_languages": tuple(voices.values()),
        }
        return TalkerConfig.model_validate(values | self.changes)
