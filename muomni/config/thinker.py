"""Sizes of the Thinker. Field names follow Hugging Face's `Qwen3Config`."""

from pydantic import model_validator

from muomni.config.base import Frozen, Positive, PositiveInt, Probability, conflict


class ThinkerConfig(Frozen):
    """The language model: a dense Qwen3 decoder (Qwen3 technical report, arXiv:2505.09388).

    Attributes:
        vocab_size: rows of the embedding, V.
        hidden_size: width of the residual stream, D.
        intermediate_size: width of the SwiGLU hidden layer.
        num_hidden_layers: blocks, L.
        num_attention_heads: query heads, H.
        num_key_value_heads: key and value heads, K; divides H (grouped-query attention).
        head_dim: width of one head; even, since rotary embedding turns pairs. Need not be D / H.
        max_position_embeddings: the context, in tokens.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: added to the mean square in every RMSNorm.
        tie_word_embeddings: the output head is the embedding itself.
        dropout: probability on both residual branches, in training only.
        initializer_range: standard deviation of the initial weights.
    """

    vocab_size: PositiveInt = 8192
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    max_position_embeddings: PositiveInt = 1024
    rope_theta: Positive = 10_000.0
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = True
    dropout: Probability = 0.0
    initializer_range: Positive = 0.02

    @model_validator(mode="after")
    def _heads_fit(self) -> "ThinkerConfig":
        if self.num_attention_heads % self.num_key_value_heads:
            groups = f"must be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            raise conflict("num_attention_heads", self.num_attention_heads, groups)
        if self.head_dim % 2:
            raise conflict("head_dim", self.head_dim, "must be even: rotary embedding turns pairs")
        return self

    def num_parameters(self) -> int:
        """Parameters of the Thinker, a tied head counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        norms = 2 * self.hidden_size + 2 * self.head_dim
        block = attention + 3 * self.hidden_size * self.intermediate_size + norms
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size
