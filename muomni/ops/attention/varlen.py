"""Packed documents through torch's varlen flash kernel: CUDA, SM80 or newer, bf16 or fp16.

One kernel launch for all documents, whatever their lengths. Where flash-attention 3 or 4 is activated in
torch's registry (`torch.nn.attention.activate_flash_attention_impl`), this is the way to it.
"""

from torch import Tensor

from muomni.ops.attention import sdpa
from muomni.ops.attention.seam import Segments, as_autocast_would, check_half, check_packed

# A window of everything before and nothing after: torch's way to say causal.
_CAUSAL = (-1, 0)


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """See `sdpa.attention`, which also takes the rows that are not packed.

    Raises:
        ValueError: packed rows in another dtype than bf16 or fp16.
    """
    if segments is None:
        return sdpa.attention(q, k, v)
    from torch.nn.attention.varlen import varlen_attn

    check_packed(q, k)
    q, k, v = as_autocast_would(q, k, v)
    check_half(q, "varlen")
    out = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_seqlen,
        segments.max_seqlen,
        window_size=_CAUSAL,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    assert isinstance(out, Tensor)  # a pair only where more was asked for
    return out.view(q.shape)
