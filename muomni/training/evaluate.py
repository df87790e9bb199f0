"""Losses over the first rows of the validation data."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from muomni.accel.distributed import Group, alone
from muomni.data import Batch, Dataset
from muomni.ops.cross_entropy import IGNORE, shift_labels
from muomni.training.objectives.module import LossModule, num_targets


@dataclass(frozen=True)
class Evaluation:
    """The result of a validation.

    Attributes:
        loss: in nats per target token; 0 without any.
        bits_per_byte: of the targets' text, which compares across tokenizers.
        targets: target tokens.
        others: the other losses by name, each a mean over its targets; without those that have none.
        parts: the two terms of the speech loss, per frame: `speech_codes` and `speech_moves`.
        bad: media that could not be read, with the reason; their documents were left out.
    """

    loss: float
    bits_per_byte: float
    targets: int
    others: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    bad: tuple[str, ...] = ()


@torch.no_grad()
def evaluate(
    model: LossModule,
    rows: Dataset[Batch],
    max_rows: int,
    batch_size: int,
    byte_lengths: Tensor,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    group: Group | None = None,
    *,
    text: bool = True,
) -> Evaluation:
    """Mean losses over the first rows, in evaluation mode; the mode is restored.

    Processes share the rows and all get the same result.

    Args:
        model: each of its losses that has a weight is computed.
        rows: not shuffled, so that every call reads the same.
        max_rows: number of rows.
        batch_size: rows of a forward pass.
        byte_lengths: (V,) int64, UTF-8 bytes of each token's text, 0 for special tokens.
        autocast: makes the context of each forward pass.
        group: the processes that evaluate together; None for this one alone.
        text: whether the rows have text to predict; without, the Thinker is not computed.
    """
    group = alone() if group is None else group
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    count = min(max_rows, rows.num_rows)
    wanted = [name for name in model.weights if name != "text"]
    names = ["text", *wanted] if text else wanted
    total = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("text", *wanted)}
    parts = {name: torch.zeros_like(total["text"]) for name in ("speech_codes", "speech_moves")}
    counts = dict.fromkeys(total, 0)
    num_bytes = 0
    bad: list[str] = []
    # FSDP's processes gather weights together, so each makes as many passes as the first, if need be over rows
    # that do not count.
    for first in range(0, count, batch_size * group.size):
        mine = range(first + group.rank, min(first + batch_size * group.size, count), group.size)
        batch = rows.batch(mine.start if mine else 0, len(mine) or 1, group.size)
        batch = batch if mine else _not_counted(batch)
        shifted = shift_labels(batch.labels)
        num_bytes += int(byte_lengths[shifted[shifted != IGNORE]].sum())
        for name, targets in num_targets(batch).items():
            if name in counts:
                counts[name] += targets
        bad += batch.bad
        with autocast():
            output = model(batch.to(device), dict.fromkeys(names, 1), names)
        for name, loss in output.losses.items():
            total[name] += loss
        for name in parts.keys() & output.details.keys():
            parts[name] += output.details[name]
    model.train(was_training)
    group.settle(model)
    losses = torch.stack([*total.values(), *parts.values()]).tolist()
    shares = group.gather((*losses, *counts.values(), num_bytes))
    sums = [sum(share) for share in zip(*shares, strict=True)]
    nats = dict(zip([*total, *parts], sums, strict=False))
    seen = dict(zip(total, sums[len(losses) :], strict=False))
    return Evaluation(
        loss=nats["text"] / max(1, seen["text"]),
        bits_per_byte=nats["text"] / math.log(2) / max(1, sums[-1]),
        targets=seen["text"],
        others={name: nats[name] / seen[name] for name in wanted if seen[name]},
        parts={name: nats[name] / seen["speech"] for name in parts if seen.get("speech")},
        bad=tuple(name for names in group.gather(bad) for name in names),
    )


def _not_counted(batch: Batch) -> Batch:
    """The same rows with nothing to predict."""
    media = batch.media and replace(batch.media, transcripts=None, captions=None)
    nothing = torch.full_like(batch.labels, IGNORE)
    return replace(batch, labels=nothing, num_targets=0, media=media, speech=None, bad=(), bad_documents=())
