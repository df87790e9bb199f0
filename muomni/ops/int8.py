"""Products with int8 weights: one seam, several kernels.

How it works. A weight matrix is kept as one byte an element and one fp32 scale for each output channel
(row): w ≈ weight · scale[:, None], the values symmetric, −127 to 127. That is a quarter of fp32's memory,
and decoding one token reads every weight once, so it is bound by just these bytes.

* `reference` dequantises, then multiplies: the definition, which the others are tested against.
* `cast` multiplies by the bare int8 values and scales the products: the same up to rounding. It converts a
  few rows at a time, so the float values stay in the processor's cache. Compiled for a GPU, the conversion
  becomes part of the product, and no float weight is ever in memory.
* `fused` is for compiled steps: Inductor makes one loop of the conversion and the product, which reads each int8
  value once. Eager it would make a float weight, and a copy for each row.
* `packed` is torch's own weight-only kernel; activations are rounded to bf16 where that is faster.
* `dynamic` also rounds the activations to int8, each token by its own scale (absmax / 127), and multiplies
  in integers (VNNI on a CPU, tensor cores on a GPU). Several times faster than float where it is there.

`packed` and `dynamic` use operators that torch keeps private: `why_not` says whether they are here and work.
Which is fastest depends on shape, rows and machine; `accel.int8` measures and chooses.

Legend: M rows (tokens), N output channels, K input channels.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.errors import first_line

Kernel = Literal["reference", "cast", "fused", "packed", "dynamic"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

# Elements of a weight that are float at one time while it is quantised, and while `cast` multiplies by it.
_QUANTIZE_BLOCK, _BLOCK = 1 << 17, 1 << 20


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix to int8, each row by its largest magnitude.

    Args:
        weight: (N, K) floating point, on any device.

    Returns:
        weight: (N, K) int8, contiguous, −127 to 127.
        scale: (N,) fp32, positive; 1 for a row of zeros.

    Raises:
        ValueError: a value is not finite.
    """
    N, K = weight.shape
    out = torch.empty(N, K, dtype=torch.int8, device=weight.device)
    scale = torch.empty(N, dtype=torch.float32, device=weight.device)
    if weight.is_meta:  # nothing to compute; torch would load a lot of Python to do so
        return out, scale
    step = max(1, _QUANTIZE_BLOCK // max(1, K))
    for start in range(0, N, step):
        rows = weight[start : start + step].detach().float()
        largest = rows.abs().amax(dim=1) if K else torch.zeros(len(rows), device=weight.device)
        if not bool(largest.isfinite().all()):
            raise ValueError("a weight is infinite or not a number")
        # The least scale keeps the division exact for rows that fp32 holds only as denormal numbers.
        one = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        one = torch.where(largest == 0, torch.ones_like(one), one)
        scale[start : start + step] = one
        out[start : start + step] = (rows / one[:, None]).round_().clamp_(-127, 127)
    return out, scale


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, K) float values of an int8 matrix; the product is taken in fp32, then rounded to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (weight.to(wide) * scale[:, None].to(wide)).to(dtype)


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, kernel: Kernel = "reference"
) -> Tensor:
    """Computes x · Wᵀ + bias with W = weight · scale[:, None].

    Args:
        x: (..., K) floating point.
        weight: (N, K) int8, contiguous.
        scale: (N,) fp32.
        bias: (N,) or None.
        kernel: see the top of this file; one that `why_not` refuses raises torch's own error.

    Returns:
        (..., N) in the dtype of `x`.
    """
    out = _FUNCTIONS[kernel](x.reshape(-1, x.shape[-1]), weight, scale)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


def _reference(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, dequantize(weight, scale, x.dtype))


def _cast(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    step = max(1, _BLOCK // weight.shape[1])
    if weight.shape[0] <= step or x.is_cuda:
        return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
    parts = [F.linear(x, rows.to(x.dtype)) for rows in torch.split(weight, step)]
    return torch.cat(parts, dim=1).mul_(scale.to(x.dtype))


def _fused(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # Channels outside, rows inside: a channel's weights are still in the processor's cache for the next row.
    products = (weight.to(wide)[:, None] * x.to(wide)[None]).sum(-1)
    return (products * scale.to(wide)[:, None]).t().to(x.dtype)


def _packed(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    # In fp32 the kernel is slow beyond use (12 to 30 times slower than in bf16 on the CPUs measured).
    low = x if x.dtype in (torch.bfloat16, torch.float16) else x.bfloat16()
    if not torch.compiler.is_compiling():
        # The kernel loads 16 elements at a time and crashes the process where they are not aligned.
        low, weight = (t if t.data_ptr() % _ALIGNMENT == 0 else t.clone() for t in (low, weight))
    return torch._weight_int8pack_mm(low, weight, scale.to(low.dtype)).to(x.dtype)  # noqa: SLF001 - see the top


# What `packed` needs: the bytes its addresses, and the input channels that K, are a multiple of.
_ALIGNMENT, _PACKED_MULTIPLE = 64, 16
# A GPU's integer product wants more rows than this, and sizes that are multiples of 8.
_CUDA_ROWS = 17


def _dynamic(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    wide = x.float()
    own = wide.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / 127
    values = (wide / own).round_().to(torch.int8)
    M = x.shape[0]
    if x.is_cuda and M < _CUDA_ROWS:
        values = F.pad(values, (0, 0, 0, _CUDA_ROWS - M))
    product = torch._int_mm(values, weight.t())[:M]  # noqa: SLF001 - see the top
    return (product.float() * own * scale).to(x.dtype)


_FUNCTIONS: dict[Kernel, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": _reference,
    "cast": _cast,
    "fused": _fused,
    "packed": _packed,
    "dynamic": _dynamic,
}


@lru_cache(maxsize=256)
def why_not(kernel: Kernel, device: torch.device, N: int, K: int) -> str | None:
    """Why a kernel cannot serve this shape here; None when it can, which is tried with a few rows.

    Args:
        kernel: which one.
        device: where it is to run.
        N: rows of the weight.
        K: its columns.
    """
    if kernel in ("reference", "cast", "fused"):
        return None
    operator = {"packed": "_weight_int8pack_mm", "dynamic": "_int_mm"}[kernel]
    if not hasattr(torch, operator):
        return f"this torch has no torch.{operator}"
    if kernel == "packed" and K % _PACKED_MULTIPLE:
        return f"torch.{operator} reads beyond rows that are not a multiple of {_PACKED_MULTIPLE}"
    if device.type == "cuda" and kernel == "dynamic" and (N % 8 or K % 8):
        return "a GPU's integer product needs sizes that are multiples of 8"
    rows = min(N, 64)
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (rows - rows % 8 or rows, K), generator=draw, dtype=torch.int8).to(device)
    scale = torch.full((len(weight),), 0.01, device=device)
    x = torch.randn(3, K, generator=draw).to(device)
    right = _reference(x, weight, scale)
    try:
        product = int8_linear(x, weight, scale, kernel=kernel)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"torch.{operator} does not work here: {first_line(error)}"
    # Written so that a result that is not a number fails.
    is_right = bool((product - right).norm() <= 0.03 * right.norm())
    return None if is_right else f"torch.{operator} comes out wrong for a small case"
