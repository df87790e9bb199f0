"""Sizes of decoders: the Thinker's, and what the Talker shares with it. Names follow Hugging Face's `Qwen3Config`."""

from typing import Self

from pydantic import model_validator

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict


class DecoderConfig(Frozen):
    """A stack of causal transformer blocks: RMSNorm, grouped-query attention with rotary embedding, SwiGLU."""

    hidden_size: PositiveInt
    """Width of the residual stream, D."""
    intermediate_size: PositiveInt
    """Width of the SwiGLU hidden layer."""
    num_hidden_layers: PositiveInt
    """Number of blocks, L."""
    num_attention_heads: PositiveInt
    """Query heads, H."""
    num_key_value_heads: PositiveInt
    """Key and value heads, K; divides H (grouped-query attention)."""
    head_dim: PositiveInt
    """Width of one head; even, since rotary embedding turns pairs. Need not be D / H."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: Positive = 1e-6
    """Added to the mean square in every RMSNorm."""
    dropout: Probability = 0.0
    """Probability on both residual branches, in training only."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            groups = f"must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            raise conflict("num_attention_heads", self.num_attention_heads, groups)
        if self.head_dim % 2:
            raise conflict("head_dim", self.head_dim, "must be even: rotary embedding turns pairs")
        return self


class ThinkerConfig(DecoderConfig):
    """The language model: a dense Qwen3 decoder (Qwen3 technical report, arXiv:2505.09388)."""

    vocab_size: PositiveInt = 8192
    """Rows of the embedding, V."""
    max_position_embeddings: PositiveInt = 1024
    """The context, in tokens."""
    tie_word_embeddings: bool = True
    """The output head is the embedding itself."""

    def num_parameters(self) -> int:
        """Parameters of the Thinker, a tied head counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        norms = 2 * self.hidden_size + 2 * self.head_dim
        block = attention + 3 * self.hidden_size * self.intermediate_size + norms
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size
