"""Rotary position embedding (Su et al., arXiv:2104.09864), in the half-split layout of Llama and Qwen.

A token has one position, or one on each of several axes: time, height and width in the Thinker, row and column
in the vision encoder. The frequencies are dealt to the axes in turn, so that each axis has fast and slow ones
(Qwen3-VL, arXiv:2511.21631); with equal positions on all axes nothing differs from one axis.

Legend: A axes, B batch, T tokens, H heads, D head_dim.
"""

import torch
from torch import Tensor


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles.

    Args:
        positions: (B, T) or (1, T) integers, or (A, B, T): frequency i turns by the position on axis i % A.
        head_dim: D, even.
        theta: base of the frequencies, `theta ** (-2i / D)`.
        dtype: of the tables; the angles themselves are computed in fp32, in fp64 when `dtype` is.

    Returns:
        cos and sin, each (B, T, 1, D / 2): they broadcast over heads.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim
    if positions.ndim == 2:
        places = positions.to(wide)[..., None]
    else:
        axes = torch.arange(head_dim // 2, device=positions.device) % positions.shape[0]
        places = positions.to(wide).movedim(0, -1)[..., axes]
    angles = places * theta**-exponents
    angles = angles[:, :, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) by its angle.

    Args:
        x: (B, T, H, D).
        cos: (B, T, 1, D / 2) from `rope_tables`.
        sin: as `cos`.

    Returns:
        (B, T, H, D) in the dtype of `x`.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
