"""Cross-entropy of a linear head, without the (tokens × vocabulary) logits.

The logits are the largest tensor of a small language model's training step: 4,096 tokens × 32,000
entries in fp32 are half a gigabyte, and the loss keeps several copies. Here they exist for one chunk
of tokens at a time, and both gradients of a chunk are taken while its logits are still in the cache,
so nothing is computed twice. The idea is that of Cut Cross-Entropy (Wijmans et al., arXiv:2411.09009)
at the level of chunks.

Legend: N tokens, D width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
CHUNK_ELEMENTS = 4 * 1024 * 1024  # logits in one chunk: 16 MiB in fp32, about a CPU's last-level cache


def shift_labels(labels: Tensor) -> Tensor:
    """Targets of each position from unshifted labels: the label of the position after it.

    This is the only place in μOmni that shifts.

    Args:
        labels: (B, T) in the Hugging Face convention, `labels[b, t]` belongs to `ids[b, t]`.

    Returns:
        (B, T): `labels[b, t + 1]`, and IGNORE at the last position.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same as `linear_cross_entropy`, with the logits of all tokens in memory."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORE, reduction="sum")


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """Sum over tokens of −log softmax(hidden · weightᵀ)[target].

    Args:
        hidden: (N, D). Under `torch.autocast` the products run in its dtype.
        weight: (V, D).
        targets: (N,) int64; IGNORE marks tokens without loss.
        chunk: tokens whose logits exist at once; None picks by vocabulary.

    Returns:
        Scalar sum in fp32 (fp64 for fp64 inputs). The weight's gradient is accumulated over chunks
        in that dtype too.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    if chunk is None:
        chunk = max(64, CHUNK_ELEMENTS // weight.shape[0])
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk, dtype)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, where the chunk's logits are at hand.

    With logits z, row maximum m and e = exp(z − m), s = Σe: the loss is log s + m − z[target] and its
    gradient e / s − onehot. The division by s is folded into the (chunk, D) side of both products, and
    the onehot part is a gather and a scatter, so the (chunk, V) block is passed over three times only.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        low_weight = weight.detach().to(dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                low_hidden = hidden.detach()[rows].to(dtype)
                valid = targets[rows] != IGNORE
                target = targets[rows].clamp(min=0)
                logits = F.linear(low_hidden, low_weight).to(wide)
                top = logits.amax(dim=-1, keepdim=True)
                at_target = logits.gather(1, target[:, None])
                exponentials = logits.sub_(top).exp_()
                sums = exponentials.sum(dim=-1, keepdim=True)
                total += ((sums.log() + top - at_target).squeeze(1) * valid).sum()
                scale = valid[:, None] / sums
                low_exponentials = exponentials.to(dtype)
                if grad_hidden is not None:
                    grad = (low_exponentials @ low_weight).to(wide) * scale
                    grad_hidden[rows] = grad - valid[:, None] * weight.detach()[target].to(wide)
                if grad_weight is not None:
                    grad_weight += low_exponentials.T @ (low_hidden * scale).to(dtype)
                    grad_weight.index_add_(0, target, low_hidden.to(wide) * -valid[:, None].to(wide))
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
