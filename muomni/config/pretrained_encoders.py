"""Encoders whose weights come from Hugging Face folders: SigLIP's for pictures, Whisper's for sound."""

from typing import Literal

from pydantic import model_validator

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict

Activation = Literal["gelu", "gelu_tanh"]


class _Published(Frozen):
    """Sizes of blocks with LayerNorm, biases and GELU; every block the same."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    activation: Activation = "gelu"
    layer_norm_eps: Positive = 1e-6
    dropout: Probability = 0.0
    initializer_range: Positive = 0.02

    @model_validator(mode="after")
    def _heads_fit(self) -> "_Published":
        if self.hidden_size % self.num_attention_heads:
            heads = f"must be a multiple of num_attention_heads ({self.num_attention_heads})"
            raise conflict("hidden_size", self.hidden_size, heads)
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class SiglipConfig(_Published):
    """SigLIP's vision encoder (Zhai et al., arXiv:2303.15343), without the head that pools.

    Attributes:
        kind: always `"siglip"`; required, since it tells this from our own encoder.
        patch_size: width and height of a patch in pixels, P.
        grid: rows and columns of the learnt table of positions; it is interpolated to the grid of a picture.
        pixel_shuffle_factor: m; m × m patches become one token of the Thinker (pixel shuffle).
        hidden_size: width of the residual stream.
        intermediate_size: width of the hidden layer of the MLP.
        num_hidden_layers: blocks.
        num_attention_heads: heads.
        activation: `"gelu"`, or `"gelu_tanh"` for its approximation.
        min_tokens: a picture is enlarged until it gives this many tokens.
        max_tokens: a picture is made smaller until it gives no more tokens than this.
        layer_norm_eps: added to the variance in every LayerNorm.
        projection_dim: width of the space in which pictures and captions are compared, for the contrastive
            loss; null: no such head.
        dropout: probability on both residual branches, in training only.
        initializer_range: standard deviation of the initial weights, where none are loaded.
    """

    kind: Literal["siglip"]
    patch_size: PositiveInt = 16
    grid: PositiveInt = 14
    pixel_shuffle_factor: PositiveInt = 2
    activation: Activation = "gelu_tanh"
    min_tokens: PositiveInt = 16
    max_tokens: PositiveInt = 64
    projection_dim: PositiveInt | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> "SiglipConfig":
        if self.min_tokens > self.max_tokens:
            raise conflict("min_tokens", self.min_tokens, f"must be at most max_tokens ({self.max_tokens})")
        return self

    @property
    def output_size(self) -> int:
        """Width of a token as the encoder gives it: m² patches beside each other."""
        return self.hidden_size * self.pixel_shuffle_factor**2


class WhisperConfig(_Published):
    """Whisper's encoder (Radford et al., arXiv:2212.04356): windows of 30 s, 50 states a second.

    Attributes:
        kind: always `"whisper"`; required, since it tells this from our own encoder.
        num_mel_bins: bands of the spectrogram, 80 or 128 in the published models.
        hidden_size: width of the convolutions and of the residual stream.
        intermediate_size: width of the hidden layer of the MLP.
        num_hidden_layers: blocks.
        num_attention_heads: heads.
        activation: `"gelu"`, or `"gelu_tanh"` for its approximation.
        layer_norm_eps: added to the variance in every LayerNorm.
        max_seconds: longest clip; longer ones are refused.
        ctc: with the head that spells what is said in UTF-8 bytes, for the CTC loss.
        dropout: probability on both residual branches, in training only.
        initializer_range: standard deviation of the initial weights, where none are loaded.
    """

    kind: Literal["whisper"]
    num_mel_bins: PositiveInt = 80
    layer_norm_eps: Positive = 1e-5
    max_seconds: Positive = 300.0
    ctc: bool = False

    @property
    def output_size(self) -> int:
        """Width of a token as the encoder gives it: four states of 20 ms beside each other."""
        return 4 * self.hidden_size
