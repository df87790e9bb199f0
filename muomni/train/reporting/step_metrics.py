"""What the steps of a run come to, on their way from the device to the log: figures, digests of rows, lines."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.config.recipe import LossSpec
from muomni.data import Batch
from muomni.model.inputs import MediaBatch
from muomni.model.talker import SpeechBatch
from muomni.train.evaluate import Evaluation
from muomni.train.step import StepResult


@dataclass(frozen=True)
class Pending:
    """A step whose figures are still on the device.

    Attributes:
        digest: this process's share of the rows' digest.
        targets: how many this process's rows hold, of each loss.
        bad: media of these rows that could not be read.
    """

    step: int
    digest: int
    result: StepResult
    targets: dict[str, int]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class StepMetrics:
    """A step's figures on the host, of all processes together.

    Attributes:
        loss, grad_norm, lr_factor: as in `StepResult`.
        digest: of its rows.
        others: the other losses by name; without those that had nothing to learn from.
        targets: target tokens.
        frames: of speech.
        impossible: as in `StepResult`.
        bad: media that could not be read.
    """

    loss: float
    grad_norm: float
    lr_factor: float
    digest: int
    others: dict[str, float]
    targets: int
    frames: int
    impossible: int
    bad: tuple[str, ...]


def digest(batches: Sequence[Batch], places: range | None) -> int:
    """Of rows and their places in the step, and of their media and speech: a sum, so that it does not matter which
    process has which row.

    Args:
        batches: the micro-batches of one process.
        places: of their rows in the step; None for pairs of speech alone, whose rows are padded to one length.
    """
    found = 0
    if places is not None:
        rows = (row for batch in batches for row in batch.input_ids.numpy())
        found = sum(zlib.crc32(row.tobytes(), place) for place, row in zip(places, rows, strict=True))
    found += sum(_media_digest(batch.media) for batch in batches if batch.media is not None)
    return found + sum(_speech_digest(batch.speech) for batch in batches if batch.speech is not None)


def score(weights: LossSpec, found: Evaluation) -> float | None:
    """What the best checkpoint has least of; None where validation holds nothing of what is learnt."""
    if weights.text:
        return found.loss
    # Where the text teaches nothing, what does is what gets better.
    learnt = {"ctc": weights.ctc, "contrastive": weights.contrastive, "speech": weights.speech}
    return sum(learnt[name] * loss for name, loss in found.others.items()) if found.others else None


def validation_line(step: int, found: Evaluation, is_best: bool) -> str:
    """A validation for a person."""
    best = "  best so far" if is_best else ""
    others = "".join(f"  {name} {loss:.4f}" for name, loss in {**found.others, **found.parts}.items())
    text = f" loss {found.loss:.4f}  {found.bits_per_byte:.4f} bits/byte" if found.targets else ""
    return f"step {step}  validation{text}{others}{best}"


def losses_line(figures: Sequence[StepMetrics], text: bool) -> str:
    """Each loss, its mean over steps that had it; that of the text where it is learnt."""
    parts = [f"loss {sum(found.loss for found in figures) / len(figures):.3f}"] if text else []
    for name in dict.fromkeys(name for found in figures for name in found.others):
        values = [found.others[name] for found in figures if name in found.others]
        parts.append(f"{name} {sum(values) / len(values):.3f}")
    return "  ".join(parts)


def number(value: float) -> float | None:
    """JSON has no NaN; `null` stands for one."""
    return value if value == value and abs(value) != float("inf") else None


def _media_digest(media: MediaBatch) -> int:
    """A sum over pictures and sounds, of every eighth patch or frame, which decoding and augmentation change alike."""
    parts: list[Tensor] = []
    if media.images is not None:
        parts += torch.split(media.images.patches, [rows * columns for rows, columns in media.images.grids])
    if media.clips is not None:
        parts += torch.split(media.clips.mel, list(media.clips.frames))
    return sum(zlib.crc32(part[::8].contiguous().numpy().tobytes()) for part in parts)


def _speech_digest(speech: SpeechBatch) -> int:
    """A sum over pairs, of their tokens and codes."""
    texts = torch.split(speech.ids, list(speech.id_lengths))
    codes = torch.split(speech.codes, list(speech.frames))
    pairs = zip(texts, codes, strict=True)
    return sum(zlib.crc32(code.numpy().tobytes(), zlib.crc32(text.numpy().tobytes())) for text, code in pairs)
