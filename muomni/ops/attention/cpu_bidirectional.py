"""Bidirectional attention over packed documents on a CPU: one call for many documents.

An encoder's documents are many and short: pictures of 64 to 256 patches, chunks of 100 tokens of sound. A call for
each would cost more than it computes, so documents become the rows of one batch. As in `varlen_cpu`, a custom
operator makes the loop one node for autograd and for `torch.compile`, whatever the documents are.

* fp32 and fp64: torch's flash kernel, once for each length; a view where the documents stand one behind the other.
* bf16 and fp16: matrix products, which are several times faster there than the kernel (see `blocked_cpu`). Their
  code is compiled for every shape they meet and kept, so lengths are padded to a multiple of `_STEP`, with keys that
  nobody sees, and documents go in batches of a power of two.

Legend: N tokens, H query heads, K key/value heads, D head_dim; n documents of a batch, P their padded length.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.ops.attention.cpu_flash import LOW, fake_gradients, flash_backward, flash_forward

_STEP = 32
# Scores of a batch that are in memory at once, and rows of scores in one product.
_SCORES = 1 << 22
_ROWS = 1024


def bidirectional_attention_cpu(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Every token attends to all tokens of its document.

    Args:
        q: (N, H, D), fp64, fp32, bf16 or fp16.
        k: (N, K, D), of the same dtype.
        v: as `k`.
        cu_seqlens: (documents + 1,) int32 on the CPU, from 0 to N. Documents may be empty.

    Returns:
        (N, H, D).
    """
    learnt = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    # An operator of our own loads torch._dynamo, seconds before a first picture; nothing needs it here.
    kernel = _bidirectional if learnt or torch.compiler.is_compiling() else _forward
    out: Tensor = kernel(q, k, v, cu_seqlens)[0]
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
        """(N, heads, ...) as (n, heads, length, ...)."""
        return x[self._rows].view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def write(self, target: Tensor, x: Tensor) -> None:
        """The inverse, into (N, heads, ...)."""
        target[self._rows] = x.transpose(1, 2).flatten(0, 1)


def _groups(cu_seqlens: Tensor) -> list[_Group]:
    by_length: dict[int, list[int]] = {}
    for start, end in _documents(cu_seqlens):
        by_length.setdefault(end - start, []).append(start)
    return [_Group(length, starts) for length, starts in by_length.items()]


def _documents(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    # The bounds live in CPU memory, so reading them waits for nothing.
    return [(start, end) for start, end in itertools.pairwise(cu_seqlens.tolist()) if end > start]


@dataclass(frozen=True)
class _Padded:
    """Documents of about one length.

    Attributes:
        rows: (n, P) int64, which token stands there; behind the end of a document its first.
        kept: (n, P) whether it is a token of the document; None where all are.
    """

    rows: Tensor
    kept: Tensor | None

    def read(self, x: Tensor, groups: int) -> Tensor:
        """(N, heads, D) as (n·K, heads / K · P, D)."""
        n, P = self.rows.shape
        per_document = x.index_select(0, self.rows.flatten()).view(n, P, groups, -1, x.shape[2])
        return per_document.permute(0, 2, 3, 1, 4).reshape(n * groups, -1, x.shape[2])

    def write(self, target: Tensor, x: Tensor) -> None:
        """The inverse, into (N, heads, D); what stands behind the end of a document is dropped."""
        n, P = self.rows.shape
        out = x.view(n, -1, P, x.shape[2]).transpose(1, 2).to(target.dtype)
        rows, found = (self.rows, out) if self.kept is None else (self.rows[self.kept][None], out[self.kept][None])
        target.index_copy_(0, rows.flatten(), found.flatten(0, 1))

    def nothing_behind(self, x: Tensor, groups: int) -> Tensor:
        """`read`, with zeros behind the end of a document."""
        out = self.read(x, groups)
        if self.kept is None:
            return out
        n, P = self.rows.shape
        return (out.view(n, -1, P, x.shape[2]) * self.kept[:, None, :, None]).view_as(out)

    def hidden(self, groups: int, dtype: torch.dtype) -> Tensor | None:
        """(n·K, 1, P) what is added to the scores of keys: −∞ behind the end of a document."""
        if self.kept is None:
            return None
        seen = torch.zeros(self.kept.shape, dtype=dtype).masked_fill_(~self.kept, -torch.inf)
        return seen.repeat_interleave(groups, 0)[:, None]


def _batches(cu_seqlens: Tensor, heads: int) -> Iterator[_Padded]:
    buckets: dict[int, list[tuple[int, int]]] = {}
    for start, end in _documents(cu_seqlens):
        buckets.setdefault(-(-(end - start) // _STEP) * _STEP, []).append((start, end))
    for padded, documents in buckets.items():
        most = 1 << (max(1, _SCORES // (heads * padded * padded)).bit_length() - 1)
        inside = torch.arange(padded)
        done = 0
        while done < len(documents):
            count = min(most, 1 << ((len(documents) - done).bit_length() - 1))
            starts, ends = torch.tensor(documents[done : done + count]).T[..., None]
            rows = starts + inside
            kept = rows < ends
            done += count
            yield _Padded(torch.where(kept, rows, starts), None if bool(kept.all()) else kept)


def _probabilities(q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
    scale = q.shape[-1] ** -0.5
    scores = _scaled(q, k.mT, scale) if hidden is None else torch.baddbmm(hidden, q, k.mT, alpha=scale)
    return scores.softmax(-1)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The product times `scale`, rounded once."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def _padded_forward(batch: _Padded, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    groups = k.shape[1]
    queries, keys, values = batch.read(q, groups), batch.read(k, groups), batch.read(v, groups)
    hidden = batch.hidden(groups, q.dtype)
    parts = [torch.bmm(_probabilities(rows, keys, hidden), values) for rows in torch.split(queries, _ROWS, 1)]
    batch.write(out, torch.cat(parts, 1))


def _padded_backward(
    batch: _Padded, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    groups = k.shape[1]
    queries, keys, values = batch.read(q, groups), batch.read(k, groups), batch.read(v, groups)
    hidden, scale = batch.hidden(groups, q.dtype), q.shape[-1] ** -0.5
    incoming = batch.nothing_behind(grad, groups)
    parts: list[Tensor] = []
    # Several products add to the same keys: in fp32.
    wide = q.dtype if queries.shape[1] <= _ROWS else torch.float32
    grad_k, grad_v = (torch.zeros(keys.shape, dtype=wide) for _ in range(2))
    for rows, upstream in zip(torch.split(queries, _ROWS, 1), torch.split(incoming, _ROWS, 1), strict=True):
        p = _probabilities(rows, keys, hidden)
        grad_scores = torch._softmax_backward_data(torch.bmm(upstream, values.mT), p, -1, p.dtype)  # noqa: SLF001 - torch has no public one
        grad_v += torch.bmm(p.mT, upstream)
        grad_k += _scaled(grad_scores.mT, rows, scale)
        parts.append(_scaled(grad_scores, keys, scale))
    for target, part in zip(grads, (torch.cat(parts, 1), grad_k, grad_v), strict=True):
        batch.write(target, part)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((0, q.shape[1]) if q.dtype in LOW else q.shape[:2], dtype=wide)


def _forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and (N, H) the logarithm of each softmax's sum; empty where the backward pass does without."""
    out, log_sum_exp = _empty(q)
    if q.dtype in LOW:
        for batch in _batches(cu_seqlens, q.shape[1]):
            _padded_forward(batch, q, k, v, out)
        return out, log_sum_exp
    for group in _groups(cu_seqlens):
        part, sums = flash_forward(group.read(q), group.read(k), group.read(v), causal=False)
        group.write(out, part)
        group.write(log_sum_exp, sums)
    return out, log_sum_exp


@torch.library.custom_op("muomni::bidirectional_cpu", mutates_args=(), device_types="cpu")
def _bidirectional(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """See `_forward`."""
    return _forward(q, k, v, cu_seqlens)


@_bidirectional.register_fake
def _bidirectional_fake(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(q)


@torch.library.custom_op("muomni::bidirectional_cpu_backward", mutates_args=(), device_types="cpu")
def _bidirectional_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape))
    if q.dtype in LOW:
        for batch in _batches(cu_seqlens, q.shape[1]):
            _padded_backward(batch, grad, q, k, v, grads)
        return grads
    for group in _groups(cu_seqlens):
        inputs = (group.read(q), group.read(k), group.read(v), group.read(out), group.read(log_sum_exp))
        for total, part in zip(grads, flash_backward(group.read(grad), *inputs, causal=False), strict=True):
            group.write(total, part)
    return grads


_bidirectional_backward.register_fake(fake_gradients)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):  # type: ignore[no-untyped-def]
    return (*_bidirectional_backward(grad.contiguous(), *ctx.saved_tensors), None)


_bidirectional.register_autograd(_differentiate, setup_context=_save)
