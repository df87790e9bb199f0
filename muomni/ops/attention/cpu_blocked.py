"""Causal attention of one document in bf16 or fp16 on a CPU, from torch's matrix products.

torch's flash kernel for CPUs runs at a sixth of the rate of its bf16 products and its backward pass at a
fifth. Here queries go in blocks of `BLOCK` rows against all keys up to the block's end, so that at most
(K, G · BLOCK, S) scores exist at once: memory stays linear in the length, and what causality hides is
mostly skipped. A block sees all of its keys, so its softmax is whole and needs no running maximum.

The query heads that share a key/value head lie below each other as rows of one product. Nothing is
repeated for them, and the products themselves add their gradients of keys and values, in fp32.

Legend: T tokens, H query heads, K key/value heads, G = H / K, D head_dim, R = G · rows of a block, S keys.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256


def blocked_forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention.

    Args:
        q: (T, H, D).
        k: (T, K, D), of the same dtype.
        v: as `k`.

    Returns:
        (T, H, D), contiguous.
    """
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, end, mask in _blocks(q):
        p = _probabilities(_below_each_other(q[start:end], k.shape[1]), keys[:, :end], mask)
        out[start:end] = _apart(torch.bmm(p, values[:, :end]), end - start)
    return out


def blocked_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the probabilities are computed again.

    Args:
        grad: (T, H, D), of the output.
        q: as in `blocked_forward`.
        k: likewise.
        v: likewise.
    """
    T, groups, D = k.shape
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Blocks of queries add to the same keys: in fp32.
    grad_k, grad_v = (torch.zeros(groups, T, D, dtype=torch.float32, device=q.device) for _ in range(2))
    for start, end, mask in _blocks(q):
        rows, grad_rows = _below_each_other(q[start:end], groups), _below_each_other(grad[start:end], groups)
        p = _probabilities(rows, keys[:, :end], mask)
        grad_v[:, :end] += torch.bmm(p.mT, grad_rows)
        grad_p = torch.bmm(grad_rows, values[:, :end].mT)
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)  # noqa: SLF001 - torch has no public one
        grad_q[start:end] = _apart(torch.bmm(grad_scores, keys[:, :end]), end - start)
        grad_k[:, :end] += torch.bmm(grad_scores.mT, rows)
    scale = D**-0.5
    grad_k.mul_(scale)
    return grad_q.mul_(scale), grad_k.transpose(0, 1).to(k.dtype), grad_v.transpose(0, 1).to(v.dtype)


def _blocks(q: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """First and last row of each block, and what is added to its scores on the diagonal."""
    T = q.shape[0]
    size = min(BLOCK, T)
    hidden = q.new_full((size, size), -torch.inf).triu(1)
    for start in range(0, T, BLOCK):
        rows = min(BLOCK, T - start)
        yield start, start + rows, hidden[:rows, :rows]


def _below_each_other(x: Tensor, groups: int) -> Tensor:
    """(rows, H, D) as (K, G · rows, D)."""
    D = x.shape[2]
    return x.reshape(x.shape[0], groups, -1, D).permute(1, 2, 0, 3).reshape(groups, -1, D)


def _apart(x: Tensor, rows: int) -> Tensor:
    """(K, G · rows, D) as (rows, H, D)."""
    return x.view(x.shape[0], -1, rows, x.shape[2]).permute(2, 0, 1, 3).flatten(1, 2)


def _probabilities(rows: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """(K, R, S) softmax of the scaled scores; the last keys are the block's own tokens, where `mask` is added."""
    scores = torch.baddbmm(rows.new_empty(()), rows, keys.mT, beta=0, alpha=rows.shape[-1] ** -0.5)
    size = mask.shape[0]
    scores.view(scores.shape[0], -1, size, scores.shape[2])[..., keys.shape[1] - size :].add_(mask)
    return scores.softmax(-1)
