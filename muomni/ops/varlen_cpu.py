"""Attention over packed documents on a CPU: one call of torch's flash kernel per document.

torch has no varlen kernel for CPUs. A dense block mask would pay for every pair of tokens of a row;
a call per document pays only for pairs inside documents, and the kernel is parallel inside. As a
custom operator the loop is one node for autograd and for `torch.compile`, whatever the documents are.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.ops.flash_cpu import LOW, flash_backward, flash_forward


def varlen_attention_cpu(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention inside each document.

    Args:
        q: (N, H, D). k, v: (N, K, D). All of one dtype: fp64, fp32, bf16 or fp16.
        cu_seqlens: (documents + 1,) int32 on the CPU, from 0 to N. Empty documents (two equal
            entries) are allowed, so that the list can be padded to a fixed length.

    Returns:
        (N, H, D).
    """
    out: Tensor = _varlen(q, k, v, cu_seqlens)[0]
    return out


@dataclass(frozen=True)
class _Span:
    """One document, and the rows the kernel is run on for it.

    In bf16 and fp16 the kernel compiles its matrix products for every length it meets and keeps them:
    hundreds of lengths cost hundreds of megabytes. So a document is run as a multiple of `_STEP`
    rows. The rows behind its end belong to the next document: by causality no row of this document
    sees them, and what they give is thrown away.
    """

    start: int
    end: int
    stop: int

    def rows(self, x: Tensor, behind: float | None = None) -> Tensor:
        """Rows start..stop as (1, heads, rows, D), the kernel's layout; a view where nothing has to change.

        Args:
            x: (N, heads, D) or (N, heads).
            behind: what the rows behind the document hold; None leaves what is there.
        """
        last = self.stop if behind is None else self.end
        x = x[self.start : last]
        missing = self.stop - self.start - x.shape[0]
        if missing:
            x = F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing), value=behind or 0.0)
        return x.transpose(0, 1).unsqueeze(0)


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
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    log_sum_exp = torch.empty(q.shape[:2], dtype=_wide(q.dtype))
    for span in _spans(cu_seqlens, q.dtype):
        part, lse = flash_forward(span.rows(q), span.rows(k), span.rows(v), causal=True)
        length = span.end - span.start
        out[span.start : span.end] = part[0].transpose(0, 1)[:length]
        log_sum_exp[span.start : span.end] = lse[0].transpose(0, 1)[:length]
    return out, log_sum_exp


@_varlen.register_fake
def _varlen_fake(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_wide(q.dtype))


@torch.library.custom_op("muomni::varlen_cpu_backward", mutates_args=(), device_types="cpu")
def _varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for span in _spans(cu_seqlens, q.dtype):
        # Behind the document: no gradient comes in, and exp(score - inf) makes every weight zero.
        inputs = (span.rows(q), span.rows(k), span.rows(v), span.rows(out))
        weights = span.rows(log_sum_exp, behind=math.inf)
        parts = flash_backward(span.rows(grad, behind=0.0), *inputs, weights, causal=True)
        for whole, part in zip(grads, parts, strict=True):
            whole[span.start : span.end] = part[0].transpose(0, 1)[: span.end - span.start]
    return grads[0], grads[1], grads[2]


@_varlen_backward.register_fake
def _varlen_backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens = inputs
    out, log_sum_exp = output
    ctx.save_for_backward(q, k, v, out, log_sum_exp, cu_seqlens)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, out, log_sum_exp, cu_seqlens = ctx.saved_tensors
    return (*_varlen_backward(grad.contiguous(), q, k, v, out, log_sum_exp, cu_seqlens), None)


_varlen.register_autograd(_differentiate, setup_context=_save)
