"""The metrics of steps on their way from the device to the log, and checksums of the rows."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data import Batch
from muomni.model.inputs import MediaBatch
from muomni.model.talker import SpeechBatch
from muomni.training.step import StepResult


@dataclass(frozen=True)
class StepMetrics:
    """A step's metrics on the host, of all processes together.

    Attributes:
        losses: means by name; without those that had nothing to learn from.
        grad_norm: as in `StepResult`.
        lr: learning rate of the step.
        counts: what else the metrics file gets: targets, the checksum of the rows.
        bad: media that could not be read; `bad_documents` are the numbers of their documents.
    """

    losses: Mapping[str, float]
    grad_norm: float
    lr: float
    counts: Mapping[str, int | str]
    bad: tuple[str, ...] = ()
    bad_documents: tuple[int, ...] = ()


def read_results(results: Sequence[StepResult]) -> list[dict[str, float]]:
    """Every step's scalars by name on the host: `loss`, `grad_norm`, `lr_factor`, `impossible` and the other losses.

    Waits for the device once.
    """
    named = []
    for r in results:
        scalars: dict[str, Tensor] = {"loss": r.loss, "grad_norm": r.grad_norm, "lr_factor": r.lr_factor, **r.others}
        named.append(scalars if r.impossible is None else {**scalars, "impossible": r.impossible})
    values = iter(torch.stack([value.float() for scalars in named for value in scalars.values()]).tolist())
    return [{name: next(values) for name in scalars} for scalars in named]


def losses_summary(steps: Sequence[StepMetrics]) -> str:
    """Each loss, its mean over the steps that had it."""
    parts = []
    for name in dict.fromkeys(name for step in steps for name in step.losses):
        values = [step.losses[name] for step in steps if name in step.losses]
        parts.append(f"{name} {sum(values) / len(values):.3f}")
    return "  ".join(parts)


def json_number(value: float) -> float | None:
    """JSON has no NaN and no infinity; `null` stands for them."""
    return value if math.isfinite(value) else None


def checksum(batches: Sequence[Batch], places: range | None) -> int:
    """Of rows and their places in the step, and of their media and speech.

    It is a sum, so that it does not matter which process has which row.

    Args:
        batches: the micro-batches of one process.
        places: of their rows in the step; None for pairs of speech alone, whose rows are padded to one length.
    """
    total = 0
    if places is not None:
        rows = (row for batch in batches for row in batch.input_ids.numpy())
        total = sum(zlib.crc32(row.tobytes(), place) for place, row in zip(places, rows, strict=True))
    total += sum(_media_checksum(batch.media) for batch in batches if batch.media is not None)
    return total + sum(_speech_checksum(batch.speech) for batch in batches if batch.speech is not None)


def _media_checksum(media: MediaBatch) -> int:
    """A sum over pictures and sounds, of every eighth patch or frame, which decoding and augmentation change alike."""
    parts: list[Tensor] = []
    if media.images is not None:
        parts += torch.split(media.images.patches, [rows * columns for rows, columns in media.images.grids])
    if media.clips is not None:
        parts += torch.split(media.clips.mel, list(media.clips.frames))
    return sum(zlib.crc32(part[::8].contiguous().numpy().tobytes()) for part in parts)


def _speech_checksum(speech: SpeechBatch) -> int:
    """A sum over pairs, of their tokens and codes."""
    texts = torch.split(speech.ids, list(speech.id_lengths))
    codes = torch.split(speech.codes, list(speech.frames))
    pairs = zip(texts, codes, strict=True)
    return sum(zlib.crc32(code.numpy().tobytes(), zlib.crc32(text.numpy().tobytes())) for text, code in pairs)
