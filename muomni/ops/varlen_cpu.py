"""Attention over packed documents on a CPU: one call of torch's flash kernel per document.

torch has no varlen kernel for CPUs. A dense block mask would pay for every pair of tokens of a row;
a call per document pays only for pairs inside documents, and the kernel is parallel inside. As a
custom operator the loop is one node for autograd and for `torch.compile`, whatever the documents are.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


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


def _spans(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    # The bounds live in CPU memory, so reading them waits for nothing.
    bounds = cu_seqlens.tolist()
    return [(start, end) for start, end in zip(bounds, bounds[1:], strict=False) if end > start]


def _rows(x: Tensor, start: int, end: int) -> Tensor:
    """Tokens start..end as (1, heads, tokens, D), the kernel's layout, without a copy."""
    return x[start:end].transpose(0, 1).unsqueeze(0)


@torch.library.custom_op("muomni::varlen_cpu", mutates_args=(), device_types="cpu")
def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    log_sum_exp = torch.empty(q.shape[:2], dtype=_wide(q.dtype))
    for start, end in _spans(cu_seqlens):
        part, lse = _forward(_rows(q, start, end), _rows(k, start, end), _rows(v, start, end), 0.0, True)
        out[start:end] = part[0].transpose(0, 1)
        log_sum_exp[start:end] = lse[0].transpose(0, 1)
    return out, log_sum_exp


@_varlen.register_fake
def _varlen_fake(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_wide(q.dtype))


@torch.library.custom_op("muomni::varlen_cpu_backward", mutates_args=(), device_types="cpu")
def _varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for start, end in _spans(cu_seqlens):
        inputs = (_rows(x, start, end) for x in (grad, q, k, v, out))
        parts = _backward(*inputs, log_sum_exp[start:end].transpose(0, 1).unsqueeze(0), 0.0, True)
        for whole, part in zip(grads, parts, strict=True):
            whole[start:end] = part[0].transpose(0, 1)
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
