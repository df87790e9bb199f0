"""Attention of several new tokens over a KV cache on a CPU: two calls of torch's flash kernel, no mask.

Every query sees all of the S - T keys of the past, and of the last T keys those up to its own: once
without a mask, once causally. Each call gives its softmax's logarithm of the sum, by which the two results
are weighted into the one over all keys (Dao et al., arXiv:2205.14135, section 3.1). A mask instead would be
turned into T × S floats, and the kernel would compute the half of the last T × T scores that it hides.
With few queries the second call costs more than that, so `sdpa` comes here only for many scores.

Legend: B batch, H query heads, K key/value heads, T queries, S keys, D head_dim.
"""

import torch
from torch import Tensor

from muomni.ops.attention.cpu_flash import fake_gradients, flash_backward, flash_forward


def cached_attention_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention aligned at the end.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D), S > T. All of one dtype: fp64, fp32, bf16 or fp16.
        v: as `k`.

    Returns:
        (B, H, T, D).
    """
    out: Tensor = _cached(q, k, v)[0]
    return out


def _halves(x: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """The keys of the past, and the queries' own."""
    past = x.shape[2] - queries
    return x[:, :, :past], x[:, :, past:]


@torch.library.custom_op("muomni::cached_cpu", mutates_args=(), device_types="cpu")
def _cached(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    past_k, own_k = _halves(k, q.shape[2])
    past_v, own_v = _halves(v, q.shape[2])
    past, past_lse = flash_forward(q, past_k, past_v, causal=False)
    own, own_lse = flash_forward(q, own_k, own_v, causal=True)
    log_sum_exp = torch.logaddexp(past_lse, own_lse).contiguous()
    share = (past_lse - log_sum_exp).exp()[..., None]
    return torch.lerp(own.to(share.dtype), past.to(share.dtype), share).to(q.dtype).contiguous(), log_sum_exp


@_cached.register_fake
def _cached_fake(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("muomni::cached_cpu_backward", mutates_args=(), device_types="cpu")
def _cached_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum_exp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    past_k, own_k = _halves(k, q.shape[2])
    past_v, own_v = _halves(v, q.shape[2])
    # The result and the sum over all keys make each half's weights, and with them its gradients, right.
    past = flash_backward(grad, q, past_k, past_v, out, log_sum_exp, causal=False)
    own = flash_backward(grad, q, own_k, own_v, out, log_sum_exp, causal=True)
    return (past[0] + own[0]).contiguous(), torch.cat((past[1], own[1]), 2), torch.cat((past[2], own[2]), 2)


_cached_backward.register_fake(fake_gradients)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx, grad: Tensor, _grad_lse: Tensor):  # type: ignore[no-untyped-def]
    return _cached_backward(grad.contiguous(), *ctx.saved_tensors)


_cached.register_autograd(_differentiate, setup_context=_save)
