"""Packed documents through FlexAttention: a kernel compiled for a mask, which skips blocks the mask hides.

torch's `create_block_mask` first makes the dense (T, T) mask. Documents are intervals of tokens, so here
each block of 128 × 128 scores is judged by the documents of its first and last tokens alone.

Needs a compiler (Triton on a GPU). torch 2.13 has no backward pass for it on CPUs or MPS
(`torch.nn.attention.flex_attention._validate_device`), so there it serves evaluation only.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muomni.ops.attention import sdpa
from muomni.ops.attention.interface import Segments, as_autocast_would, check_packed

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True) -> Tensor:
    """See `sdpa.attention`, which also takes the rows that are not packed."""
    if segments is None:
        return sdpa.attention(q, k, v, causal=causal)
    check_packed(q, k)
    q, k, v = (x.transpose(1, 2) for x in as_autocast_would(q, k, v))
    mask = block_mask(segments.documents(q.shape[0], q.shape[2]), causal)
    out: Tensor = _kernel()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def block_mask(document: Tensor, causal: bool = True) -> "BlockMask":
    """Which blocks of scores are seen in part and which wholly, without a dense mask.

    Args:
        document: (B, T) integers that do not fall along a row.
        causal: a query sees no key behind it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    T = document.shape[1]
    starts = torch.arange(0, T, _BLOCK, device=document.device)
    first = document[:, starts]
    last = document[:, (starts + _BLOCK - 1).clamp(max=T - 1)]
    # Of query block i (rows) and key block j (columns): a document in common, or nothing but one document.
    shared = (last[:, None, :] >= first[:, :, None]) & (first[:, None, :] <= last[:, :, None])
    whole = starts + _BLOCK <= T
    one = torch.minimum(first[:, :, None], first[:, None, :]) == torch.maximum(last[:, :, None], last[:, None, :])
    inside = one & whole[:, None] & whole
    if causal:
        shared, inside = shared & (starts[:, None] >= starts), inside & (starts[:, None] > starts)

    def together(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document[b, query] == document[b, key]

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & together(b, h, query, key)

    mask = visible if causal else together
    return BlockMask.from_kv_blocks(
        *_listed(shared & ~inside), *_listed(inside), BLOCK_SIZE=_BLOCK, mask_mod=mask, seq_lengths=(T, T)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Per query block, how many key blocks are meant and which, those first: (B, 1, rows) and (B, 1, rows, columns)."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None].contiguous()


def _kernel() -> Callable[..., Any]:
    # In a compiled model the outer compilation takes it in; outside one it would run uncompiled and dense.
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention
    kernel: Callable[..., Any] = _compiled()
    return kernel


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
