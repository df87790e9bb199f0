"""torch's flash kernel for CPUs, called directly: what `varlen_cpu` and `cached_cpu` are made of.

Legend: B batch, H query heads, K key/value heads, T queries, S keys, D head_dim.
"""

import torch
from torch import Tensor

# torch has no public way to the sums of the softmax.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # noqa: SLF001

LOW = (torch.bfloat16, torch.float16)


def flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of each softmax's sum.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D), of the same dtype.
        v: as `k`.
        causal: query t sees keys 0 .. t.

    Returns:
        (B, H, T, D), and (B, H, T) in fp32 (fp64 for fp64).
    """
    out, log_sum_exp = _forward(q, k, v, 0.0, causal)
    return out, log_sum_exp


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    With grouped heads the kernel adds up a group's gradients of keys and values in their own dtype, which
    in bf16 can err by more than twice what plain bf16 attention does (docs/LOG.md). In low precision each
    query head therefore gets a gradient of its own, and groups are added in fp32.

    Args:
        grad: (B, H, T, D), of the output.
        q: as in `flash_forward`.
        k: likewise.
        v: likewise.
        out: what `flash_forward` gave.
        log_sum_exp: likewise.
        causal: as in `flash_forward`.
    """
    groups = k.shape[1]
    if q.shape[1] == groups or q.dtype not in LOW:
        grads: tuple[Tensor, Tensor, Tensor] = _backward(grad, q, k, v, out, log_sum_exp, 0.0, causal)
        return grads
    k, v = (expand_groups(x, q.shape[1]) for x in (k, v))
    grad_q, grad_k, grad_v = _backward(grad, q, k, v, out, log_sum_exp, 0.0, causal)
    added = (x.unflatten(1, (groups, -1)).sum(2, dtype=torch.float32).to(x.dtype) for x in (grad_k, grad_v))
    return grad_q, *added


def expand_groups(x: Tensor, heads: int) -> Tensor:
    """(B, K, S, D) as (B, heads, S, D): each key/value head once for every query head of its group."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def fake_gradients(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a backward operation gives, for whoever traces it: gradients of q, k and v."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
