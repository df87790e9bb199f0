"""Sizes of the Talker, which turns text and the Thinker's states into codes of speech."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict
from muomni.config.codec import CodecConfig
from muomni.config.thinker import ThinkerConfig

Pattern = Literal["depth", "delay", "parallel"]
Voices = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1, max_length=256)]


class TalkerConfig(Frozen):
    """The Talker: a decoder over frames of speech that reads the text at a pointer, which only moves forward.

    Attributes:
        hidden_size: width of the residual stream, D.
        intermediate_size: width of the SwiGLU hidden layer.
        num_hidden_layers: blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides the query heads.
        head_dim: width of one head; even.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: added to the mean square in every RMSNorm.
        dropout: probability on both residual branches, in training only.
        initializer_range: standard deviation of the initial weights.
        thinker_layer: the states that are read are those after so many blocks of the Thinker.
        text_size: width of the text encoder.
        text_layers: its blocks.
        text_kernel: units that a block's convolution spans, as many before its own as behind it; odd.
        pattern: how the codes of a frame are predicted: `depth` one after the other inside the frame, `delay` code k
            of frame t at step t + k, `parallel` all at once.
        depth_size: width of the predictor inside a frame; for `depth` only.
        depth_intermediate: width of the hidden layers of its blocks; for `depth` only.
        num_codebooks: K, codes of a frame, as the codec has them.
        codebook_size: V, codes are 0 to this, exclusive.
        max_advance: how many units the pointer moves at most from one frame to the next.
        voices: names of the voices.
        code_corruption: share of frames that are replaced by random codes where training feeds them back, so that a
            wrong frame does not spoil those behind it.
        conditioning_dropout: probability that training takes zeros for the Thinker's states of a sentence.
        stop_weight: of a sentence's last frame in the loss of the moves.
    """

    hidden_size: PositiveInt = 384
    intermediate_size: PositiveInt = 1024
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 6
    num_key_value_heads: PositiveInt = 2
    head_dim: PositiveInt = 64
    rope_theta: Positive = 10_000.0
    rms_norm_eps: Positive = 1e-6
    dropout: Probability = 0.0
    initializer_range: Positive = 0.02
    thinker_layer: PositiveInt
    text_size: PositiveInt = 256
    text_layers: PositiveInt = 4
    text_kernel: int = Field(default=7, ge=1, le=31)
    pattern: Pattern = "depth"
    depth_size: PositiveInt = 256
    depth_intermediate: PositiveInt = 512
    num_codebooks: int = Field(ge=1, le=32)
    codebook_size: int = Field(ge=2, le=65_536)
    max_advance: int = Field(default=8, ge=1, le=64)
    voices: Voices = ("default",)
    code_corruption: Probability = 0.1
    conditioning_dropout: Probability = 0.2
    stop_weight: Positive = 5.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TalkerConfig":
        if self.num_attention_heads % self.num_key_value_heads:
            groups = f"must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            raise conflict("num_attention_heads", self.num_attention_heads, groups)
        if self.head_dim % 2:
            raise conflict("head_dim", self.head_dim, "must be even: rotary embedding turns pairs")
        if self.text_kernel % 2 == 0:
            raise conflict("text_kernel", self.text_kernel, "must be odd: as many units before as behind")
        if len(set(self.voices)) < len(self.voices):
            raise conflict("voices", ", ".join(self.voices), "must differ from each other")
        return self

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
            vocab_size=self.codebook_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=4096,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
            tie_word_embeddings=False,
            dropout=self.dropout,
            initializer_range=self.initializer_range,
        )


class TalkerSpec(Frozen):
    """A Talker to train; sizes that are not given are those of `TalkerConfig`, see there for their meaning.

    Attributes:
        codec: run or folder of a trained speech codec; needed unless the model starts from one that speaks.
        from_thinker: start the Talker's blocks from the Thinker's last ones, where their sizes agree.
        thinker_layer: null takes half of the Thinker's blocks.
    """

    codec: str | None = Field(default=None, min_length=1)
    from_thinker: bool = True
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_hidden_layers: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    rope_theta: Positive | None = None
    rms_norm_eps: Positive | None = None
    dropout: Probability | None = None
    initializer_range: Positive | None = None
    thinker_layer: PositiveInt | None = None
    text_size: PositiveInt | None = None
    text_layers: PositiveInt | None = None
    text_kernel: Annotated[int, Field(ge=1, le=31)] | None = None
    pattern: Pattern | None = None
    depth_size: PositiveInt | None = None
    depth_intermediate: PositiveInt | None = None
    max_advance: Annotated[int, Field(ge=1, le=64)] | None = None
    code_corruption: Probability | None = None
    conditioning_dropout: Probability | None = None
    stop_weight: Positive | None = None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Its own, and those of `TalkerConfig`."""
        sizes = {name: text for name, text in TalkerConfig.field_docs().items() if name in cls.model_fields}
        return sizes | super().field_docs()

    @property
    def changes(self) -> dict[str, Any]:
        """The sizes that are given."""
        return self.model_dump(exclude={"codec", "from_thinker"}, exclude_none=True)

    def build(self, thinker: ThinkerConfig, codec: CodecConfig, voices: tuple[str, ...]) -> TalkerConfig:
        """The configuration for a Thinker, a codec and voices."""
        values = {
            "thinker_layer": max(1, thinker.num_hidden_layers // 2),
            "num_codebooks": codec.num_codebooks,
            "codebook_size": codec.codebook_size,
            "voices": voices,
        }
        return TalkerConfig.model_validate(values | self.changes)
