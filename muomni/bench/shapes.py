"""The model shapes that benchmarks run."""

from muomni.config import ThinkerConfig
from muomni.config.model import PresetName

# Model shapes that are measured besides the presets: those of the tables in docs/LOG.md.
SHAPES: dict[str, ThinkerConfig] = {
    "12m": ThinkerConfig(
        vocab_size=32000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    ),
    "100m": ThinkerConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
    ),
}


# The preset whose encoders go with them.
SHAPE_PRESETS: dict[str, PresetName] = {"12m": "tiny", "100m": "small"}
