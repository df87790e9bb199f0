"""Packed documents through the installed flash-attn 2 package: CUDA, SM80 or newer, bf16 or fp16."""

from torch import Tensor

from muomni.ops.attention import sdpa
from muomni.ops.attention.seam import Segments, as_autocast_would, check_half, check_packed


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """See `sdpa.attention`, which also takes the rows that are not packed.

    Raises:
        ValueError: packed rows in another dtype than bf16 or fp16.
    """
    if segments is None:
        return sdpa.attention(q, k, v)
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    check_packed(q, k)
    q, k, v = as_autocast_would(q, k, v)
    check_half(q, "flash_attn")
    out: Tensor = flash_attn_varlen_func(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_seqlen,
        segments.max_seqlen,
        causal=True,
    )
    return out.view(q.shape)
