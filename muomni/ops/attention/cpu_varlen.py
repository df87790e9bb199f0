"""Attention over packed documents on a CPU: one call per document.

torch has no varlen kernel for CPUs. A dense block mask would pay for every pair of tokens of a row;
a call per document pays only for pairs inside documents, and is parallel inside. In fp32 and fp64 the call
is torch's flash kernel, in bf16 and fp16 it is `blocked_cpu`, which is faster there. As a custom operator
the loop is one node for autograd and for `torch.compile`, whatever the documents are.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.ops.attention.cpu_blocked import blocked_backward, blocked_forward
from muomni.ops.attention.cpu_flash import LOW, fake_gradients, flash_backward, flash_forward


def varlen_attention_cpu(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention inside each document.

    Args:
        q: (N, H, D), fp64, fp32, bf16 or fp16.
        k: (N, K, D), of the same dtype.
        v: as `k`.
        cu_seqlens: (documents + 1,) int32 on the CPU, from 0 to N. Empty documents (two equal
            entries) are allowed, so that the list can be padded to a fixed length.

    Returns:
        (N, H, D).
    """
    out: Tensor = _varlen(q, k, v, cu_seqlens)[0]
    return out


@dataclass(frozen=True)
class _Span:
    """One document, and the rows that are computed for it.

    In bf16 and fp16 the products' code is compiled for every length they meet and kept: hundreds of lengths
    cost hundreds of megabytes. So a document is run as a multiple of `_STEP` rows. The rows behind its end
    belong to the next document: by causality no row of this document sees them, and what they give is
    thrown away.
    """

    start: int
    end: int
    stop: int

    def rows(self, x: Tensor, behind: float | None = None) -> Tensor:
        """Rows start..stop of (N, heads, D); a view where nothing has to change.

        Args:
            x: (N, heads, D).
            behind: what the rows behind the document hold; None leaves what is there.
        """
        last = self.stop if behind is None else self.end
        x = x[self.start : last]
        missing = self.stop - self.start - x.shape[0]
        return F.pad(x, (0, 0, 0, 0, 0, missing), value=behind or 0.0) if missing else x


_STEP = 64


def _spans(cu_seqlens: Tensor, dtype: torch.dtype) -> list[_Span]:
    step = _STEP if dtype in LOW else 1
    # The bounds live in CPU memory, so reading them waits for nothing.
    bounds = cu_seqlens.tolist()
    return [
        _Span(start, end, start + -(-(end - start) // step) * step)
        for start, end in itertools.pairwise(bounds)
        if end > start
    ]


@torch.library.custom_op("muomni::varlen_cpu", mutates_args=(), device_types="cpu")
def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and (N, H) the logarithm of each softmax's sum; empty where the backward pass does without."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    log_sum_exp = _varlen_fake(q, k, v, cu_seqlens)[1]
    for span in _spans(cu_seqlens, q.dtype):
        length = span.end - span.start
        if q.dtype in LOW:
            out[span.start : span.end] = blocked_forward(span.rows(q), span.rows(k), span.rows(v))[:length]
        else:
            part, lse = flash_forward(
                _heads_first(span.rows(q)), _heads_first(span.rows(k)), _heads_first(span.rows(v)), causal=True
            )
            out[span.start : span.end] = part[0].transpose(0, 1)
            log_sum_exp[span.start : span.end] = lse[0].transpose(0, 1)
    return out, log_sum_exp


@_varlen.register_fake
def _varlen_fake(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((0, q.shape[1]) if q.dtype in LOW else q.shape[:2], dtype=wide)


@torch.library.custom_op("muomni::varlen_cpu_backward", mutates_args=(), device_types="cpu")
def _varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for span in _spans(cu_seqlens, q.dtype):
        inputs = (span.rows(q), span.rows(k), span.rows(v))
        if q.dtype in LOW:
            # No gradient comes in behind the document.
            parts = blocked_backward(span.rows(grad, behind=0.0), *inputs)
        else:
            inputs = (_heads_first(inputs[0]), _heads_first(inputs[1]), _heads_first(inputs[2]))
            ends = (_heads_first(span.rows(grad)), _heads_first(span.rows(out)))
            lse = log_sum_exp[span.start : span.end].transpose(0, 1)[None]
            found = flash_backward(ends[0], *inputs, ends[1], lse, causal=True)
            parts = (found[0][0].transpose(0, 1), found[1][0].transpose(0, 1), found[2][0].transpose(0, 1))
        for total, part in zip(grads, parts, strict=True):
            total[span.start : span.end] = part[: span.end - span.start]
    return grads[0], grads[1], grads[2]


_varlen_backward.register_fake(fake_gradients)


def _heads_first(x: Tensor) -> Tensor:
    """(T, heads, D) as (1, heads, T, D), the layout of torch's kernel."""
    return x.transpose(0, 1).unsqueeze(0)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens = inputs
    out, log_sum_exp = output
    ctx.save_for_backward(q, k, v, out, log_sum_exp, cu_seqlens)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, out, log_sum_exp, cu_seqlens = ctx.saved_tensors
    return (*_varlen_backward(grad.contiguous(), q, k, v, out, log_sum_exp, cu_seqlens), None)


_varlen.register_autograd(_differentiate, setup_context=_save)
