"""The blocks of the Thinker. Module names are Qwen3's, so that weights and LoRA targets carry over.

Legend: B batch, T tokens, D hidden_size, H query heads, K key/value heads, Dh head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import ThinkerConfig
from muomni.model.cache import Cache
from muomni.ops.attention import AttentionFunction, Segments, attention
from muomni.ops.norm import rms_norm
from muomni.ops.rope import apply_rope

Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """See `ops.norm.rms_norm`; the weight starts at one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention with RMSNorm on queries and keys, then rotary positions.

    `attend` is the backend; `accel.attention` sets another from outside.
    """

    def __init__(self, config: ThinkerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
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
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim))
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
        heads = self.attend(q, k, v, segments) if cache is None else cache.attend(self.layer, q, k, v, self.attend)
        out: Tensor = self.o_proj(heads.flatten(2))
        return out


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202): silu(gate(x)) · up(x), then down."""

    def __init__(self, config: ThinkerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ThinkerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, segments: Segments | None, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, segments, cache))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x
