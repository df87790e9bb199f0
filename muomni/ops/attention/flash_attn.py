"""Packed documents through the installed flash-attn 2 package: CUDA, SM80 or newer, bf16 or fp16."""

from torch import Tensor

from muomni.ops.attention import sdpa
from muomni.ops.attention.interface import Segments, packed_by


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True) -> Tensor:
    """See `sdpa.attention`, which also takes the rows that are not packed.

    Raises:
        ValueError: packed rows in another dtype than bf16 or fp16.
    """
    if segments is None:
        return sdpa.attention(q, k, v, causal=causal)
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    return packed_by(flash_attn_varlen_func, "flash_attn", q, k, v, segments, causal=causal)
