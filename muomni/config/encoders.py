"""Sizes of the encoders: our own, trained with the model, and those whose weights come from Hugging Face folders."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict

Activation = Literal["gelu", "gelu_tanh"]


class _Encoder(Frozen):
    """Sizes of an encoder's transformer blocks."""

    hidden_size: PositiveInt
    """Width of the residual stream (and of the convolutions, for sound)."""
    intermediate_size: PositiveInt
    """Width of the hidden layer of the MLP."""
    num_hidden_layers: PositiveInt
    """Number of blocks."""
    num_attention_heads: PositiveInt
    """Number of heads; their width is a multiple of 4 in our vision encoder, of 2 in our audio encoder."""
    dropout: Probability = 0.0
    """Probability on both residual branches, in training only."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights, where none are loaded."""

    # Rotary embedding turns pairs of a head's numbers, over as many axes as there are.
    head_multiple: ClassVar[int] = 1

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            heads = f"must be a multiple of num_attention_heads ({self.num_attention_heads})"
            raise conflict("hidden_size", self.hidden_size, heads)
        if self.head_dim % self.head_multiple:
            allowed = f"must make heads whose width is a multiple of {self.head_multiple}, not {self.head_dim}"
            raise conflict("num_attention_heads", self.num_attention_heads, f"{allowed}: rotary embedding turns pairs")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class _ThinkerBlocks(_Encoder):
    """Blocks like the Thinker's (RMSNorm, SwiGLU, rotary embedding), without causality."""

    rms_norm_eps: Positive = 1e-6
    """Added to the mean square in every RMSNorm."""

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads: an encoder has no cache that fewer would shrink."""
        return self.num_attention_heads


class _PretrainedBlocks(_Encoder):
    """Blocks with LayerNorm, biases and GELU."""

    activation: Activation = "gelu"
    """`"gelu"`, or `"gelu_tanh"` for its approximation."""
    layer_norm_eps: Positive = 1e-6
    """Added to the variance in every LayerNorm."""


class _Vision(_Encoder):
    """From a picture's patches to tokens of the Thinker."""

    patch_size: PositiveInt = 16
    """Width and height of a patch in pixels, P."""
    pixel_shuffle_factor: PositiveInt = 2
    """m; m × m patches become one token of the Thinker (pixel shuffle)."""
    min_tokens: PositiveInt = 16
    """A picture is enlarged until it gives this many tokens."""
    max_tokens: PositiveInt = 64
    """A picture is made smaller until it gives no more tokens than this."""
    projection_dim: PositiveInt | None = None
    """Width of the space in which pictures and captions are compared, for the contrastive loss; null: no such head."""

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise conflict("min_tokens", self.min_tokens, f"must be at most max_tokens ({self.max_tokens})")
        return self

    @property
    def output_size(self) -> int:
        """Width of a token as the encoder gives it: m² patches beside each other."""
        return self.hidden_size * self.pixel_shuffle_factor**2


class _Audio(_Encoder):
    """From a spectrogram to tokens of the Thinker."""

    num_mel_bins: PositiveInt = 80
    """Bands of the spectrogram; 80 or 128 in the published Whisper models."""
    max_seconds: Positive = 300.0
    """Longest clip; longer ones are refused."""
    ctc: bool = False
    """Adds the head that spells what is said in UTF-8 bytes, for the CTC loss."""

    # States of the encoder beside each other in one token.
    states_per_token: ClassVar[int] = 1

    @property
    def output_size(self) -> int:
        """Width of a token as the encoder gives it."""
        return self.states_per_token * self.hidden_size


class VisionConfig(_Vision, _ThinkerBlocks):
    """The vision encoder: a transformer over the patches of a picture."""

    kind: Literal["vit"] = "vit"
    """Always `"vit"`, what is described here."""
    rope_theta: Positive = 100.0
    """Base of the rotary frequencies of rows and columns."""
    head_multiple = 4
    fixed = frozenset({"kind"})


class AudioConfig(_Audio, _ThinkerBlocks):
    """The audio encoder: log-mel frames at 100 Hz, three convolutions of stride 2, transformer blocks at 12.5 Hz."""

    kind: Literal["conv"] = "conv"
    """Always `"conv"`, what is described here."""
    chunk_tokens: PositiveInt = 100
    """Tokens that see each other, 12.5 a second; longer clips are cut into such chunks."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies inside a chunk."""
    head_multiple = 2
    fixed = frozenset({"kind"})


class SiglipConfig(_Vision, _PretrainedBlocks):
    """SigLIP's vision encoder (Zhai et al., arXiv:2303.15343), without the head that pools."""

    kind: Literal["siglip"]
    """Always `"siglip"`; required, since it tells this from our own encoder."""
    grid: PositiveInt = 14
    """Rows and columns of the learnt table of positions; it is interpolated to the grid of a picture."""
    activation: Activation = "gelu_tanh"


class WhisperConfig(_Audio, _PretrainedBlocks):
    """Whisper's encoder (Radford et al., arXiv:2212.04356): windows of 30 s, 50 states a second."""

    kind: Literal["whisper"]
    """Always `"whisper"`; required, since it tells this from our own encoder."""
    layer_norm_eps: Positive = 1e-5
    states_per_token = 4


VisionEncoderConfig = VisionConfig | SiglipConfig
AudioEncoderConfig = AudioConfig | WhisperConfig
