"""Bidirectional attention over packed documents on a CPU: one call for all documents of a length.

An encoder's documents are many and short (pictures of 64 to 256 patches, chunks of sound), and mostly of few
lengths. Documents of one length are the rows of one batch for torch's flash kernel: a view where they stand one
behind the other, else a copy. As in `varlen_cpu`, a custom operator makes the loop one node for autograd and for
`torch.compile`, whatever the documents are.

In bf16 and fp16 this computes in fp32, since torch's kernel is slow in low precision (see `blocked_cpu`), and
returns to the dtype given.
"""

import itertools

import torch
from torch import Tensor

from muomni.ops.flash_cpu import flash_backward, flash_forward


def bidirectional_attention_cpu(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Every token attends to all tokens of its document.

    Args:
        q: (N, H, D). k, v: (N, K, D). All of one dtype: fp64, fp32, bf16 or fp16.
        cu_seqlens: (documents + 1,) int32 on the CPU, from 0 to N. Documents may be empty.

    Returns:
        (N, H, D).
    """
    out: Tensor = _bidirectional(q, k, v, cu_seqlens)[0]
    return out


class _Group:
    """The documents of one length.

    Args:
        length: tokens of each.
        starts: where they begin, in order.
    """

    def __init__(self, length: int, starts: list[int]) -> None:
        self.shape = (len(starts), length)
        follow = all(after - before == length for before, after in itertools.pairwise(starts))
        self._rows: slice | Tensor = slice(starts[0], starts[-1] + length)
        if not follow:
            self._rows = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()

    def read(self, x: Tensor) -> Tensor:
        """(N, heads, D) as (documents, heads, length, D), at least in fp32."""
        wide = x[self._rows] if x.dtype == torch.float64 else x[self._rows].float()
        return wide.view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def read_sums(self, x: Tensor) -> Tensor:
        """(N, H) as (documents, H, length)."""
        return x[self._rows].view(*self.shape, x.shape[1]).transpose(1, 2)

    def write(self, target: Tensor, x: Tensor) -> None:
        """The inverse of both, into (N, heads, ...)."""
        target[self._rows] = x.transpose(1, 2).flatten(0, 1).to(target.dtype)


def _groups(cu_seqlens: Tensor) -> list[_Group]:
    by_length: dict[int, list[int]] = {}
    # The bounds live in CPU memory, so reading them waits for nothing.
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        if end > start:
            by_length.setdefault(end - start, []).append(start)
    return [_Group(length, starts) for length, starts in by_length.items()]


@torch.library.custom_op("muomni::bidirectional_cpu", mutates_args=(), device_types="cpu")
def _bidirectional(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and (N, H) the logarithm of each softmax's sum."""
    out, log_sum_exp = _bidirectional_fake(q, k, v, cu_seqlens)
    for group in _groups(cu_seqlens):
        part, sums = flash_forward(group.read(q), group.read(k), group.read(v), causal=False)
        group.write(out, part)
        group.write(log_sum_exp, sums)
    return out, log_sum_exp


@_bidirectional.register_fake
def _bidirectional_fake(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide)


@torch.library.custom_op("muomni::bidirectional_cpu_backward", mutates_args=(), device_types="cpu")
def _bidirectional_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for group in _groups(cu_seqlens):
        inputs = (group.read(q), group.read(k), group.read(v), group.read(out), group.read_sums(log_sum_exp))
        for total, part in zip(grads, flash_backward(group.read(grad), *inputs, causal=False), strict=True):
            group.write(total, part)
    return grads[0], grads[1], grads[2]


@_bidirectional_backward.register_fake
def _bidirectional_backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):  # type: ignore[no-untyped-def]
    return (*_bidirectional_backward(grad.contiguous(), *ctx.saved_tensors), None)


_bidirectional.register_autograd(_differentiate, setup_context=_save)
