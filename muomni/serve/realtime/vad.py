"""When somebody speaks: turns of speech in a stream of sound.

Legend: N windows of `WINDOW` samples.
"""

from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from muomni.data.media.audio import Samples
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.realtime.session import ServerVad
from muomni.serve.realtime.silero import WINDOW

# Speech is at least so many windows; a click is shorter.
_LEAST = 3
# Once there is speech, windows that are nearly as probable belong to it, as in Silero's own iterator.
_HYSTERESIS = 0.15
# Decibels: speech is so much louder than the floor, how fast that becomes certain, and the lowest floor.
_LOUDER = 9.0
_STEEPNESS = 3.0
_LOWEST = -60.0
# Windows of which the quietest is the floor: four seconds, in which whoever speaks takes breath.
_MEMORY = 128


class Voice(Protocol):
    """Says how probable speech is."""

    def __call__(self, windows: Samples) -> NDArray[np.float64]:
        """(N,) from 0 to 1, of (N, WINDOW) samples at `SAMPLE_RATE` that follow those before."""


class EnergyVoice:
    """Speech is what is louder than the quietest of the last seconds: for where no detector is installed."""

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=_MEMORY)

    def __call__(self, windows: Samples) -> NDArray[np.float64]:
        """See `Voice`."""
        levels = 10 * np.log10(windows.var(axis=1, dtype=np.float64) + 1e-12)
        louder = np.empty_like(levels)
        for n, level in enumerate(levels):
            self._levels.append(level)
            louder[n] = level - max(min(self._levels), _LOWEST)
        return np.asarray(1 / (1 + np.exp((_LOUDER - louder) / _STEEPNESS)))


class Mark(NamedTuple):
    """A turn begins or ends.

    Attributes:
        begins: whether it begins.
        place: of the turn's first sample, or behind its last.
    """

    begins: bool
    place: int


class TurnDetector:
    """Turns of speech in a stream of sound.

    Args:
        voice: says how probable speech is.
        settings: of the turns; may be replaced at any time.
        place: of the first sample that comes.
        longest: samples of a turn, at most; longer ones are cut.

    Attributes:
        settings: see there.
        speaking: whether there is speech.
    """

    def __init__(self, voice: Voice, settings: ServerVad, place: int, longest: int) -> None:
        self.settings = settings
        self.speaking = False
        self._voice = voice
        self._longest = longest
        self._place = self._earliest = self._begin = place
        self._rest = np.empty(0, np.float32)
        self._loud = self._quiet = 0

    @property
    def needed(self) -> int:
        """The place from which on sound may still be part of a turn."""
        if self.speaking:
            return self._begin
        return max(self._earliest, self._place - self._prefix - (_LEAST - 1) * WINDOW)

    @property
    def _prefix(self) -> int:
        return self.settings.prefix_padding_ms * SAMPLE_RATE // 1000

    def push(self, samples: Samples) -> list[Mark]:
        """What begins and ends in the next samples, (S,) at `SAMPLE_RATE`."""
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) // WINDOW
        self._rest = samples[whole * WINDOW :]
        if not whole:
            return []
        marks = []
        for probability in self._voice(samples[: whole * WINDOW].reshape(whole, WINDOW)).tolist():
            self._place += WINDOW
            mark = self._ends(probability) if self.speaking else self._begins(probability)
            if mark is not None:
                marks.append(mark)
        return marks

    def restart(self, place: int) -> None:
        """What came before a place belongs to no turn."""
        self.speaking = False
        self._place = self._earliest = place
        self._rest = self._rest[:0]
        self._loud = 0

    def _begins(self, probability: float) -> Mark | None:
        self._loud = self._loud + 1 if probability >= self.settings.threshold else 0
        if self._loud < _LEAST:
            return None
        self.speaking, self._quiet = True, 0
        self._begin = max(self._place - _LEAST * WINDOW - self._prefix, self._earliest)
        return Mark(True, self._begin)

    def _ends(self, probability: float) -> Mark | None:
        self._quiet = 0 if probability >= self.settings.threshold - _HYSTERESIS else self._quiet + WINDOW
        silence = self.settings.silence_duration_ms * SAMPLE_RATE // 1000
        if self._quiet <= silence and self._place - self._begin < self._longest:
            return None
        self.speaking, self._loud, self._earliest = False, 0, self._place
        return Mark(False, self._place)
