"""Packed documents through torch's varlen flash kernel: CUDA, SM80 or newer, bf16 or fp16.

One kernel launch for all documents, whatever their lengths. Where flash-attention 3 or 4 is activated in
torch's registry (`torch.nn.attention.activate_flash_attention_impl`), this is the way to it.
"""

from torch import Tensor

from muomni.ops.attention import sdpa
from muomni.ops.attention.interface import Segments, packed_by

# Windows of everything before and nothing after, torch's way to say causal, and of everything.
_CAUSAL, _ALL = (-1, 0), (-1, -1)


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, *, causal: bool = True) -> Tensor:
    """See `sdpa.attention`, which also takes the rows that are not packed.

    Raises:
        ValueError: packed rows in another dtype than bf16 or fp16.
    """
    if segments is None:
        return sdpa.attention(q, k, v, causal=causal)
    from torch.nn.attention.varlen import varlen_attn

    grouped = q.shape[2] != k.shape[2]
    window = _CAUSAL if causal else _ALL
    return packed_by(varlen_attn, "varlen", q, k, v, segments, window_size=window, enable_gqa=grouped)
