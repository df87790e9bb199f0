"""Model configurations and the presets. Field names follow Hugging Face's `Qwen3Config`."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from muomni.config.base import Frozen, conflict
from muomni.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PresetName = Literal["nano", "tiny", "small", "base"]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)


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


class OmniConfig(Frozen):
    """A whole model as `config.json` holds it.

    Attributes:
        model_type: always `"muomni"`; it is how a folder is told from a plain Qwen3 one.
        thinker: the language model.
        eos_token_ids: ids that end a reply.
    """

    model_type: Literal["muomni"] = "muomni"
    thinker: ThinkerConfig
    eos_token_ids: tuple[int, ...] = Field(default=(), strict=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for libraries that expect a Hugging Face configuration; PEFT asks for tied embeddings."""
        return self.model_dump(mode="json") | {"tie_word_embeddings": self.thinker.tie_word_embeddings}


def preset(name: PresetName) -> OmniConfig:
    """The named preset, with the default vocabulary of 8,192 (`base`: Qwen3's 151,936).

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no preset {name!r}: there are {', '.join(PRESET_NAMES)}")
    return OmniConfig(thinker=_PRESETS[name])


_PRESETS: dict[PresetName, ThinkerConfig] = {
    "nano": ThinkerConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    ),
    "tiny": ThinkerConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
    ),
    "small": ThinkerConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
    ),
    "base": ThinkerConfig(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_theta=1_000_000.0,
    ),
}
