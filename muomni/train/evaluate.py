"""Validation loss over fixed rows."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muomni.data import PackedRows
from muomni.ops.attention import Segments
from muomni.ops.loss import IGNORE, shift_labels


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per target token; bits per byte of the targets' text, which compares across tokenizers."""

    loss: float
    bits_per_byte: float
    targets: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: PackedRows,
    max_rows: int,
    batch_size: int,
    byte_lengths: Tensor,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation:
    """Mean loss over the first rows of `rows`, the model in eval mode and put back after.

    Args:
        model: as in `train.step`.
        rows: not shuffled, so that every call reads the same.
        max_rows, batch_size: how many rows are read, and how many at once.
        byte_lengths: (V,) int64, UTF-8 bytes of each token's text, 0 for special tokens.
        autocast: makes the context of each forward pass.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    count = min(max_rows, rows.num_rows)
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = num_bytes = 0
    for first in range(0, count, batch_size):
        batch = rows.batch(first, min(batch_size, count - first))
        shifted = shift_labels(batch.labels)
        num_bytes += int(byte_lengths[shifted[shifted != IGNORE]].sum())
        targets += batch.num_targets
        batch = batch.to(device)
        with autocast():
            output = model(
                batch.input_ids,
                labels=batch.labels,
                positions=batch.positions,
                segments=Segments(batch.cu_seqlens, batch.max_seqlen).rounded(batch.input_ids.numel()),
                num_targets=1,
            )
        total += output.loss
    model.train(was_training)
    nats = float(total)
    return Evaluation(nats / max(1, targets), nats / math.log(2) / max(1, num_bytes), targets)
