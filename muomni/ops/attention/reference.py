"""Attention by its definition: readable, quadratic, and what every backend is tested against."""

import torch
from torch import Tensor

from muomni.ops.attention.interface import Segments, check_packed


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True
) -> Tensor:
    """See `sdpa.attention`; every step in the dtype of `q`."""
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    k = k.repeat_interleave(H // K, dim=2)
    v = v.repeat_interleave(H // K, dim=2)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device)
    visible = (visible.tril(S - T) if causal else visible).expand(B, T, S)
    if segments is not None:
        check_packed(q, k)
        document = segments.documents(B, T).to(q.device)
        visible = visible & (document[:, :, None] == document[:, None, :])
    scores = torch.einsum("bthd,bshd->bhts", q, k) / D**0.5
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)
