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
CHUNK_ELEMENTS = 16 * 1024 * 1024  # logits in one chunk; see docs/LOG.md for how it was chosen
_STEP = 64
_SLICE = 4096  # rows of the weight whose gradient is widened at once


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
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        hidden, targets = _learnt(hidden, targets)
    if chunk is None:
        chunk = max(64, CHUNK_ELEMENTS // weight.shape[0])
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk, dtype)  # type: ignore[no-untyped-call]
    return total


def _learnt(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Only the tokens that have a target, and a few more: in a conversation most have none.

    Their number is made a multiple of `_STEP`, as products are compiled and kept for every number they meet. Only on a
    CPU: there, knowing the number waits for nothing.
    """
    places = (targets != IGNORE).nonzero().flatten()
    missing = -places.shape[0] % _STEP if places.shape[0] else _STEP
    if places.shape[0] + missing > targets.shape[0] * 7 // 8:
        return hidden, targets  # what is spared would not pay for the copies
    return (
        hidden.index_select(0, F.pad(places, (0, missing))),
        F.pad(targets.index_select(0, places), (0, missing), value=IGNORE),
    )


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, where the chunk's logits are at hand.

    With logits z, p = softmax(z) and their maxima: the loss is max z − z[target] − log max p, because
    max p = 1 / Σ exp(z − max z), and its gradient is p − onehot. So p is the only (chunk, V) block made
    besides z, in the dtype of the products, and the onehot part is a gather and a scatter of (chunk, D).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        N, V = hidden.shape[0], weight.shape[0]
        hidden, weight = hidden.detach(), weight.detach()
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        # The same block for all chunks: memory that is new to the process costs more than what is done with it.
        chunk = min(chunk, N)
        logits_block = torch.empty(chunk, V, dtype=dtype, device=hidden.device)
        # The CPU's softmax reads an element for the last time when it writes it, so p may take the logits' place.
        p_block = logits_block if hidden.device.type == "cpu" else torch.empty_like(logits_block)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, N, chunk):
                rows = slice(start, min(start + chunk, N))
                size = rows.stop - start
                h = low_hidden[rows]
                valid = (targets[rows] != IGNORE)[:, None]
                target = targets[rows].clamp(min=0)
                logits, p = logits_block[:size], p_block[:size]
                torch.mm(h, low_weight.T, out=logits)
                top = logits.amax(dim=-1, keepdim=True).to(wide)
                at_target = logits.gather(1, target[:, None]).to(wide)
                torch.softmax(logits, dim=-1, out=p)
                losses = top - at_target - p.amax(dim=-1, keepdim=True).to(wide).log()
                total += (losses * valid).sum()
                if grad_hidden is not None:
                    grad_hidden[rows] = ((p @ low_weight).to(wide) - low_weight[target].to(wide)) * valid
                if grad_weight is not None:
                    learnt = h * valid
                    _add_product(grad_weight, p, learnt)
                    grad_weight.index_add_(0, target, learnt.to(wide), alpha=-1)
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


def _add_product(total: Tensor, p: Tensor, rows: Tensor) -> None:
    """Adds pᵀ · rows to `total`, where which may be of a wider dtype: in slices, because the product has to be widened.

    Args:
        total: (V, D).
        p: (n, V).
        rows: (n, D).
    """
    if total.dtype == p.dtype:
        total.addmm_(p.T, rows)
        return
    for part, columns in zip(torch.split(total, _SLICE), torch.split(p, _SLICE, dim=1), strict=True):
        part += columns.T @ rows
