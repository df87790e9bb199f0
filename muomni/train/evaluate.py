"""Validation loss over fixed rows."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from muomni.accel.parallel import Group, alone
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
    group: Group | None = None,
) -> Evaluation:
    """Mean loss over the first rows of `rows`, the model in eval mode and put back after.

    Several processes share the rows and get the same result.

    Args:
        model: as in `train.step`.
        rows: not shuffled, so that every call reads the same.
        max_rows, batch_size: how many rows are read, and how many at once.
        byte_lengths: (V,) int64, UTF-8 bytes of each token's text, 0 for special tokens.
        autocast: makes the context of each forward pass.
        group: the processes that evaluate together; None for this one alone.
    """
    group = alone() if group is None else group
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    count = min(max_rows, rows.num_rows)
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = num_bytes = 0
    # FSDP's processes gather weights together, so each makes as many passes as the first, if need be over rows
    # that do not count.
    for first in range(0, count, batch_size * group.size):
        mine = range(first + group.rank, min(first + batch_size * group.size, count), group.size)
        batch = rows.batch(mine.start if mine else 0, len(mine) or 1, group.size)
        if not mine:
            batch = replace(batch, labels=torch.full_like(batch.labels, IGNORE), num_targets=0)
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
    group.settle(model)
    shares = group.gather((float(total), targets, num_bytes))
    nats, targets, num_bytes = (sum(share) for share in zip(*shares, strict=True))
    return Evaluation(nats / max(1, targets), nats / math.log(2) / max(1, num_bytes), targets)
