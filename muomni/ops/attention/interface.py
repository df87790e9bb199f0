"""What every backend shares: its signature, and how documents of packed rows are described."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Lists of bounds are padded to a power of two of at least this many, `max_seqlen` to one of at least that many.
_FEWEST_BOUNDS = 16
_SHORTEST = 128


@dataclass(frozen=True)
class Segments:
    """Documents of packed rows, in the form of flash-attention's varlen kernels.

    Attributes:
        cu_seqlens: (number of documents + 1,) int32, cumulative lengths over the flattened B·T
            tokens, from 0 to B·T; every row end is a boundary. Documents may be empty.
        max_seqlen: length of the longest document, or more.
    """

    cu_seqlens: Tensor
    max_seqlen: int

    def rounded(self, tokens: int) -> "Segments":
        """The same documents in one of few shapes, so that a compiled model does not compile for every batch anew.

        Empty documents are added at the end, and `max_seqlen` is raised.

        Args:
            tokens: B·T, where the last document ends. Known on the host, so nothing waits for the device.
        """
        bounds = self.cu_seqlens.shape[0]
        missing = max(_FEWEST_BOUNDS, 1 << (bounds - 1).bit_length()) - bounds
        max_seqlen = max(_SHORTEST, 1 << (self.max_seqlen - 1).bit_length())
        return Segments(F.pad(self.cu_seqlens, (0, missing), value=tokens), max_seqlen)

    def documents(self, batch: int, length: int) -> Tensor:
        """(B, T) int64 on the device of `cu_seqlens`: which document a token belongs to, counted over all rows."""
        tokens = torch.arange(batch * length, dtype=self.cu_seqlens.dtype, device=self.cu_seqlens.device)
        return torch.bucketize(tokens, self.cu_seqlens, right=True).view(batch, length)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document, as numbers on the host: waits for the device, once for all layers."""
        lengths: list[int] = self.cu_seqlens.diff().tolist()
        return lengths


class AttentionFunction(Protocol):
    """Scaled dot-product attention, grouped heads (Ainslie et al., arXiv:2305.13245); causal unless told otherwise."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, /, *, causal: bool = True
    ) -> Tensor:
        """See `sdpa.attention`."""


def check_packed(q: Tensor, k: Tensor) -> None:
    """Packed rows come without a cache, so each query has its key.

    Raises:
        ValueError: they have not.
    """
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"packed rows attend to themselves: {q.shape[1]} queries but {k.shape[1]} keys")


def check_half(q: Tensor, backend: str) -> None:
    """Flash kernels multiply in bf16 and fp16 only.

    Raises:
        ValueError: another dtype came.
    """
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{backend} attention computes in bf16 or fp16 but was given {q.dtype}: "
            "run the model under autocast, or give it another backend"
        )


def packed_by(
    kernel: Callable[..., object], name: str, q: Tensor, k: Tensor, v: Tensor, segments: Segments, **options: object
) -> Tensor:
    """Packed rows through a varlen kernel of flash-attention's signature.

    Args:
        kernel: takes (N, heads, D) queries, keys and values, both lists of bounds and both longest lengths.
        name: of the backend, for errors.
        q: as in `sdpa.attention`.
        k: likewise.
        v: likewise.
        segments: likewise.
        options: the kernel's own.

    Raises:
        ValueError: rows with a cache, or another dtype than bf16 or fp16.
    """
    check_packed(q, k)
    q, k, v = as_autocast_would(q, k, v)
    check_half(q, name)
    bounds, longest = segments.cu_seqlens, segments.max_seqlen
    flat = (x.flatten(0, 1) for x in (q, k, v))
    out = kernel(*flat, bounds, bounds, longest, longest, **options)
    assert isinstance(out, Tensor)  # a pair only where more was asked for
    return out.view(q.shape)


def as_autocast_would(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts as autocast does for SDPA, for kernels that autocast does not know."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
