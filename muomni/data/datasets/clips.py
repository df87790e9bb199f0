"""Clips of one length cut from recordings; each a pure function of (recordings, length, seed, number).

An epoch cuts each source end to end into clips, from another first sample each time, and reads them in another
order; a source of weight 2 is cut twice. Clips may span two recordings with the pause between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.order import mixed_key, random_order
from muomni.data.speech.recording_cache import Sounds
from muomni.errors import DataError

if TYPE_CHECKING:
    import torch

# Gain of validation clips.
_USUAL_DB = -6.0


@dataclass(frozen=True)
class ClipBatch:
    """Clips side by side.

    Attributes:
        samples: (B, S) float32, −1 to 1.
        id: of their content.
    """

    samples: "torch.Tensor"
    id: str

    def to(self, device: "torch.device | str") -> Self:
        """The same on a device."""
        return replace(self, samples=self.samples.to(device, non_blocking=True))


class ClipDataset(Dataset[ClipBatch]):
    """Random access to clips, counted on over the epochs.

    Args:
        sounds: the recordings.
        samples: S, of a clip.
        seed: of the order, the cuts and the loudness.
        shuffle: False cuts every epoch the same way, in order, for validation.
        gain_db: clips are made quieter by up to so many decibels; with `shuffle` only.
        weights: of each source, how many times an epoch reads it; empty: once.

    Raises:
        DataError: a source is shorter than a clip.
    """

    def __init__(
        self,
        sounds: Sounds,
        samples: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        gain_db: float = 0.0,
        weights: Sequence[float] = (),
    ) -> None:
        self.sounds = sounds
        self.samples = samples
        self.seed = seed
        self.shuffle = shuffle
        self.gain_db = gain_db
        ends = np.array(sounds.bounds, np.int64)
        self._starts = np.concatenate(([0], ends[:-1]))
        # First samples of clips are these many, in each source.
        self._places = ends - self._starts - samples + 1
        if (self._places < 1).any():
            shortest = int((ends - self._starts).min()) / 16_000
            raise DataError(f"a source lasts {shortest:.2f} s, less than one clip; lower codec.clip_seconds")
        times = np.array(weights or [1.0] * len(ends))
        self._counts = np.maximum(1, np.rint(times * (ends - self._starts) / samples)).astype(np.int64)
        self._order = lru_cache(2)(self._ordered)
        self._key = f"{sounds.key} {samples} {seed} {shuffle} {gain_db} {self._counts.tolist()}"

    @property
    def num_rows(self) -> int:
        """Clips in an epoch."""
        return int(self._counts.sum())

    @property
    def key(self) -> str:
        """Names the clips."""
        return self._key

    def row(self, number: int) -> NDArray[np.float32]:
        """(S,) the clip of a number ≥ 0, counted over all epochs."""
        if number < 0:
            raise IndexError(f"row {number} does not exist")
        epoch, place = divmod(number, self.num_rows)
        epoch = epoch if self.shuffle else 0
        slot = int(self._order(epoch)[place]) if self.shuffle else place
        source = int(np.searchsorted(np.cumsum(self._counts), slot, side="right"))
        inside = slot - int(self._counts[:source].sum())
        shift = mixed_key(self.seed, epoch, source, 0) if self.shuffle else 0
        first = int(self._starts[source]) + (inside * self.samples + shift) % int(self._places[source])
        chance = mixed_key(self.seed, epoch, slot, 1) / 2**64
        factor = 10 ** ((-self.gain_db * chance if self.shuffle else _USUAL_DB) / 20) / 32768
        clip: NDArray[np.float32] = self.sounds.samples[first : first + self.samples].astype(np.float32)
        clip *= np.float32(factor)
        return clip

    def batch(self, first_index: int, count: int, stride: int = 1) -> ClipBatch:
        """See `Dataset.batch`."""
        import torch

        rows = np.stack([self.row(first_index + n * stride) for n in range(count)])
        return ClipBatch(torch.from_numpy(rows), self.batch_id(first_index, count, stride))

    def _ordered(self, epoch: int) -> NDArray[np.int64]:
        return random_order(self.num_rows, mixed_key(self.seed, epoch))
