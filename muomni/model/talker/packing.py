"""How sentences stand in packed rows, and the delay pattern. Made on the host, from lengths alone.

Legend: S sentences, K codebooks, T frames of a sentence, M steps of the row, R places of the row of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.model.inputs import filled, moved, row_length
from muomni.ops.attention import Segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

# In the place of a code that there is not.
NONE = -1


def delay(codes: Tensor) -> Tensor:
    """(T, K) codes of frames as (T + K − 1, K) of steps: code k of frame t at step t + k, elsewhere NONE."""
    K = codes.shape[1]
    return torch.stack([F.pad(codes[:, k], (k, K - 1 - k), value=NONE) for k in range(K)], dim=1)


def undelay(steps: Tensor) -> Tensor:
    """Undoes `delay`.

    Raises:
        ValueError: fewer than K steps make no frame.
    """
    M, K = steps.shape
    if M < K:
        raise ValueError(f"{M} steps are no frame: it takes {K}")
    return torch.stack([steps[k : M - (K - 1 - k), k] for k in range(K)], dim=1)


@dataclass(frozen=True)
class Steps:
    """The steps of all sentences in one row, sentence behind sentence, filled up to one of few lengths.

    Attributes:
        sentence: (M,) int64, whose step it is; 0 in what fills the row.
        inside: (M,) int64, its number in the sentence, and its position.
        first: (M,) int64, the first of all frames that is of this sentence.
        count: (M,) int64, frames of the sentence; 0 in what fills the row.
        segments: the sentences as documents, and behind them what fills the row.
    """

    sentence: Tensor
    inside: Tensor
    first: Tensor
    count: Tensor
    segments: Segments

    def frames(self, behind: Tensor | int, missing: int) -> Tensor:
        """(M,) or (M, K) int64: the frame so many steps before each, `missing` where its sentence has none.

        Args:
            behind: number of steps, or (K,) of them.
            missing: what stands for no frame.
        """
        inside, first, count = self.inside, self.first, self.count
        if isinstance(behind, Tensor):
            inside, first, count = inside[:, None], first[:, None], count[:, None]
        place = inside - behind
        return torch.where((place >= 0) & (place < count), first + place, missing)


def lay_out_steps(frames: Sequence[int], flush: int, device: torch.device) -> Steps:
    """The row of sentences of so many frames.

    Args:
        frames: of each sentence, at least 1.
        flush: steps behind the last frame of each.
        device: of what comes out.
    """
    counts = np.asarray(frames, dtype=np.int64)
    sentence, inside = counted(counts + flush)
    steps = len(sentence)
    missing = row_length(steps) - steps
    first = (np.cumsum(counts) - counts)[sentence]

    def row(values: "NDArray[np.int64]") -> Tensor:
        return moved(torch.from_numpy(np.pad(values, (0, missing))), device)

    segments = row_segments((counts + flush).tolist(), device)
    return Steps(row(sentence), row(inside), row(first), row(counts[sentence]), segments)


def lay_out_sentences(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Segments]:
    """The row of sentences of so many tokens: (1, length) int64 positions, 0 in what fills it, and its documents."""
    _, positions = counted(np.asarray(lengths, dtype=np.int64))
    filler = row_length(len(positions)) - len(positions)
    row = torch.from_numpy(np.pad(positions, (0, filler)))[None]
    return moved(row, device), row_segments(lengths, device)


def row_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Documents of so many tokens in one row, with what fills it up to `row_length`."""
    bounds = filled([0, *np.cumsum(lengths).tolist()])
    segments = Segments(torch.tensor(bounds, dtype=torch.int32), max(64, *lengths)).rounded(bounds[-1])
    return Segments(moved(segments.cu_seqlens, device), segments.max_seqlen)


@dataclass(frozen=True)
class TextRow:
    """The units of all sentences in one row, with a gap behind each that a convolution does not see across.

    Attributes:
        places: (R,) int64, which of the S·U units stands there; 0 where none does.
        sentence: (R,) int64, whose unit it is; 0 where there is none.
        inside: (R,) bool, where a unit stands.
        starts: (S,) int64, the place of each sentence's first unit.
    """

    places: Tensor
    sentence: Tensor
    inside: Tensor
    starts: Tensor


def lay_out_text(lengths: Sequence[int], longest: int, gap: int, device: torch.device) -> TextRow:
    """The row of sentences of so many units.

    Args:
        lengths: units of each sentence.
        longest: U, units of a padded row they come from.
        gap: places behind each sentence.
        device: of what comes out.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    spans = counts + gap
    sentence, number = counted(spans)
    inside = number < counts[sentence]
    places = np.where(inside, sentence * longest + number, 0)
    missing = row_length(len(places)) - len(places)
    rows = [np.pad(x, (0, missing)) for x in (places, np.where(inside, sentence, 0), inside)]
    starts = np.cumsum(spans) - spans
    return TextRow(*(moved(torch.from_numpy(x), device) for x in (*rows, starts)))


def counted(counts: "NDArray[np.int64]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Of things in groups of `counts`: the group of each, and its number in the group."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
