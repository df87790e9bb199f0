"""The blocks of the Thinker and of the encoders. Module names are Qwen3's, so that weights and LoRA targets carry over.

Legend: B batch, T tokens, D hidden_size, H query heads, K key/value heads, Dh head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import AudioConfig, VisionConfig
from muomni.config.thinker import DecoderConfig
from muomni.model.kv_cache import Cache
from muomni.ops.attention import AttentionFunction, Segments, attention
from muomni.ops.rms_norm import rms_norm
from muomni.ops.rope import apply_rope

Rotation = tuple[Tensor, Tensor]


# What has sizes of such blocks.
BlockConfig = DecoderConfig | VisionConfig | AudioConfig


class RMSNorm(nn.Module):
    """See `ops.rms_norm.rms_norm`; the weight starts at one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """What `repr` and `model.structure` say of it."""
        return f"{self.weight.numel()}, eps={self.eps}"


class Attention(nn.Module):
    """Grouped-query self-attention with RMSNorm on queries and keys, then rotary positions.

    `attend` is the backend; `accel.attention_backend` sets another from outside. In an encoder (`causal` is False)
    every token sees all of its document.
    """

    def __init__(self, config: BlockConfig, layer: int, causal: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.causal = causal
        self.attend: AttentionFunction = attention
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments | None, cache: Cache | None) -> Tensor:
        """(B, T, D) to the same; `rotation` from `rope_tables`, the others as in `Thinker.forward`."""
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim))
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
        if cache is None:
            heads = self.attend(q, k, v, segments, causal=self.causal)
        else:
            heads = cache.attend(self.layer, q, k, v, self.attend)
        out: Tensor = self.o_proj(heads.flatten(2))
        return out

    def extra_repr(self) -> str:
        """What `repr` and `model.structure` say of it."""
        return f"layer={self.layer}, head_dim={self.head_dim}, causal={self.causal}"


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202): silu(gate(x)) · up(x), then down."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BlockConfig, layer: int, causal: bool = True) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, causal)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments | None, cache: Cache | None = None) -> Tensor:
        """(B, T, D) to the same; see `Attention.forward`."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, segments, cache))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x
