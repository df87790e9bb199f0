"""The blocks of published encoders (ViT, SigLIP, Whisper): LayerNorm, biases, GELU, no rotary positions.

Legend: B batch, T tokens, D hidden_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import SiglipConfig, WhisperConfig
from muomni.model.layers import Attention, Block
from muomni.ops.attention import AttentionFunction, Segments, attention

# What has sizes of such blocks.
PublishedConfig = SiglipConfig | WhisperConfig


class PublishedAttention(nn.Module):
    """Self-attention over all of a document (Vaswani et al., arXiv:1706.03762).

    `attend` is the backend; `accel.attention_backend` sets another from outside.
    """

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.attend: AttentionFunction = attention
        self.head_dim = config.head_dim
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        # A bias of the keys adds the same to all scores of a query: the softmax does not see it.
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, segments: Segments | None) -> Tensor:
        """(B, T, D) to the same; with `segments` a token sees its own document only."""
        B, T, _ = x.shape
        q, k, v = (project(x).view(B, T, -1, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.out_proj(self.attend(q, k, v, segments, causal=False).flatten(2))
        return out


class PublishedBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = PublishedAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.gelu = "tanh" if config.activation == "gelu_tanh" else "none"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, segments: Segments | None) -> Tensor:
        """(B, T, D) to the same; with `segments` a token sees its own document only."""
        x = x + self.dropout(self.self_attn(self.layer_norm1(x), segments))
        x = x + self.dropout(self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate=self.gelu)))
        return x


# What the optimizations of blocks work on: recomputation, compilation and sharding; and choosing attention.
BLOCKS = (Block, PublishedBlock)
ATTENTIONS = (Attention, PublishedAttention)


@torch.no_grad()
def init_published(encoder: nn.Module, std: float, generator: torch.Generator | None) -> None:
    """Normal weights, biases of 0, norms of 1: for tests, and for training such an encoder from nothing."""
    for module in encoder.modules():
        of_norm = isinstance(module, nn.LayerNorm)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(1.0 if of_norm and name == "weight" else 0.0)
