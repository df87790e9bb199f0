"""Causal attention: one signature for every backend.

Legend: B batch, T query tokens, S key tokens, H query heads, K key/value heads (K divides H), D head_dim,
N = B·T tokens of packed rows.

What a query may see is said by two things, never by a dense (T, S) mask:

* causal, aligned at the end: query t of T sees keys 0 .. S - T + t. With a KV cache S > T.
* `Segments`: rows packed from several documents; attention stays inside a document.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.ops.varlen_cpu import varlen_attention_cpu


@dataclass(frozen=True)
class Segments:
    """Documents of packed rows, in the form of flash-attention's varlen kernels.

    Attributes:
        cu_seqlens: (number of documents + 1,) int32, cumulative lengths over the flattened B·T
            tokens, from 0 to B·T; every row end is a boundary.
        max_seqlen: length of the longest document.
    """

    cu_seqlens: Tensor
    max_seqlen: int


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """Scaled dot-product attention, causal, grouped heads (Ainslie et al., arXiv:2305.13245).

    Args:
        q: (B, T, H, D).
        k, v: (B, S, K, D), S ≥ T; with `segments` S = T.
        segments: documents of packed rows; None where a row is one document.

    Returns:
        (B, T, H, D) in the dtype of `q`.
    """
    if segments is None:
        return _sdpa(q, k, v)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"packed rows attend to themselves: {q.shape[1]} queries but {k.shape[1]} keys")
    if q.device.type == "cpu":
        flat = varlen_attention_cpu(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), segments.cu_seqlens)
        return flat.view_as(q)
    return attention_reference(q, k, v, segments)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if queries == 1:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    elif queries == keys:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        # SDPA's is_causal aligns at the start (pytorch #108108); a cache needs it aligned at the end.
        visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=grouped)
    return out.transpose(1, 2)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """The same by its definition, in the dtype given: what every backend is tested against."""
    B, T, H, D = q.shape
    S, K = k.shape[1], k.shape[2]
    k = k.repeat_interleave(H // K, dim=2)
    v = v.repeat_interleave(H // K, dim=2)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T).expand(B, T, S)
    if segments is not None:
        tokens = torch.arange(B * T, device=q.device)
        document = torch.bucketize(tokens, segments.cu_seqlens.to(q.device), right=True).view(B, T)
        visible = visible & (document[:, :, None] == document[:, None, :])
    scores = torch.einsum("bthd,bshd->bhts", q, k) / D**0.5
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)
