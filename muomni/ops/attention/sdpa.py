"""Attention through torch's SDPA, which takes its flash, efficient or cuDNN kernel by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.ops.attention.cpu_bidirectional import bidirectional_attention_cpu
from muomni.ops.attention.cpu_cached import cached_attention_cpu
from muomni.ops.attention.cpu_flash import LOW, expand_groups
from muomni.ops.attention.cpu_varlen import varlen_attention_cpu
from muomni.ops.attention.interface import Segments, as_autocast_would, check_packed

# Scores for which a CPU is given a mask of floats, 1 MiB of them: faster than two calls when there are few queries.
_SMALL_MASK = 2**18


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True) -> Tensor:
    """Scaled dot-product attention, grouped heads (Ainslie et al., arXiv:2305.13245).

    Args:
        q: (B, T, H, D).
        k: (B, S, K, D), S ≥ T; with `segments` S = T.
        v: as `k`.
        segments: documents of packed rows; None where a row is one document.
        causal: a query sees no key behind it; False, as in an encoder: it sees all keys of its document.

    Returns:
        (B, T, H, D) in the dtype of `q`, under autocast in autocast's.
    """
    if segments is None:
        return _rows(q, k, v, causal)
    check_packed(q, k)
    if q.device.type == "cpu":
        q, k, v = as_autocast_would(q, k, v)
        kernel = varlen_attention_cpu if causal else bidirectional_attention_cpu
        return kernel(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), segments.cu_seqlens).view_as(q)
    out: Tensor = per_document(q, k, v, segments, causal=causal)
    return out


def per_document(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, causal: bool = True) -> Tensor:
    """Packed rows by one SDPA call a document: for devices and dtypes without a kernel for many documents.

    Arguments and result are those of `attention`. The lengths become numbers here, so a graph that
    `torch.compile` makes breaks at this point. (`torch.compiler.disable` as a decorator would say so, but
    loads the whole compiler when this file is imported.)
    """
    parts = (torch.split(x.flatten(0, 1), segments.lengths) for x in (q, k, v))
    documents = [document for document in zip(*parts, strict=True) if document[0].shape[0]]
    out = [_rows(q[None], k[None], v[None], causal) for q, k, v in documents]
    return torch.cat(out, dim=1).view(q.shape)


def _rows(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Each row one document, the queries at its end."""
    queries, keys = q.shape[1], k.shape[1]
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if grouped and q.device.type == "cpu" and k.requires_grad and as_autocast_would(q)[0].dtype in LOW:
        # As in `flash_backward`, which SDPA does not go through.
        k, v = (expand_groups(x, q.shape[1]) for x in (k, v))
        grouped = False
    if queries == 1 or not causal:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    elif queries == keys:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif q.device.type == "cpu" and queries * keys > _SMALL_MASK:
        out = cached_attention_cpu(*as_autocast_would(q, k, v))
    else:
        out = _aligned_at_the_end(q, k, v, grouped)
    return out.transpose(1, 2)


def _aligned_at_the_end(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> Tensor:
    """SDPA's is_causal aligns at the start (pytorch #108108); a cache needs it aligned at the end.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D), S > T.
        v: as `k`.
        grouped: H differs from K.
    """
    queries, keys = q.shape[2], k.shape[2]
    if q.device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        # The flash kernel aligns at the end by itself and this reaches it; where it cannot run (fp32 with
        # grouped heads, old GPUs), torch makes the mask below.
        mask: Tensor = causal_lower_right(queries, keys)
        q, k, v = as_autocast_would(q, k, v)
    else:
        # No kernel of other devices aligns at the end. On a CPU the mask is small; elsewhere it is as high as
        # the chunk of the prompt that is being read.
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
