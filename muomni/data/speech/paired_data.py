"""Pairs of text and speech codes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from muomni.data.arrays import Ints
from muomni.data.speech.sentences import wording
from muomni.errors import DataError


@dataclass(frozen=True)
class SpeechPairs:
    """Recordings as codes, and which unit of its text each frame speaks.

    A part of the pairs (`select`) shares the arrays of frames with the whole.

    Attributes:
        texts: (P) what is said: `Word.spoken` of the words, with a space between.
        voices: (P,) int64, numbers of `speakers`.
        speakers: names, sorted.
        languages: of the speakers.
        starts: (P,) int64, where the frames of each pair begin in `codes`.
        frames: (P,) int64, how many there are; at least 2.
        codes: (F, K) uint16, often mapped into memory.
        pointers: (F,) uint16; of a pair they begin with 0 (BEGIN), never fall, and end at its last unit (END).
        sources: (P,) int64, the source that each is from.
        frame_rate: frames a second.
        left_out: pairs that are not here, with the reason.
        key: identifies the content.
    """

    texts: Sequence[str]
    voices: Ints
    speakers: tuple[str, ...]
    languages: tuple[str, ...]
    starts: Ints
    frames: Ints
    codes: NDArray[np.uint16]
    pointers: NDArray[np.uint16]
    sources: Ints
    frame_rate: float
    left_out: tuple[str, ...]
    key: str

    def __len__(self) -> int:
        """P."""
        return len(self.texts)

    @property
    def seconds(self) -> float:
        """Of all recordings."""
        return int(self.frames.sum()) / self.frame_rate

    def select(self, places: Ints) -> "SpeechPairs":
        """Some of the pairs, in this order.

        Args:
            places: (p,) int64.
        """
        return replace(
            self,
            texts=[self.texts[place] for place in places],
            voices=self.voices[places],
            starts=self.starts[places],
            frames=self.frames[places],
            sources=self.sources[places],
            key=blake2b(f"{self.key} {places.tolist()}".encode(), digest_size=12).hexdigest(),
        )

    def split(self, fraction: float) -> "tuple[SpeechPairs, SpeechPairs]":
        """Those to learn from and those held out, by a hash of what is said: the same words are never in both.

        Where chance would leave one of the two empty, one wording goes there.

        Raises:
            DataError: all pairs say the same.
        """
        keys = [wording(text).encode() for text in self.texts]
        if len(set(keys)) < 2:
            raise DataError(f"{len(keys)} pairs of text and speech that say the same cannot be divided for validation")
        ranks = np.array([int.from_bytes(blake2b(words, digest_size=8).digest(), "big") for words in keys], np.uint64)
        out = ranks < np.uint64(fraction * 2**64)
        out = out if out.any() else ranks == ranks.min()
        out = out if not out.all() else ranks != ranks.max()
        return self.select(np.flatnonzero(~out)), self.select(np.flatnonzero(out))
