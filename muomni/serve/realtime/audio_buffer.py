"""Sound that comes in: decoded, brought to the rate at which the model hears, and kept until it is an item."""

import base64
import binascii

import numpy as np
import soxr

from muomni.data.media.audio import Samples
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.errors import ApiError
from muomni.serve.speech import RATE

# Characters of base64 in one event.
MAX_AUDIO = 15 << 20
_EMPTY = np.empty(0, np.float32)


def pcm(audio: str, param: str) -> bytes:
    """The bytes of samples in base64.

    Raises:
        ApiError: it is none.
    """
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param}: is not valid base64", param=param, code="invalid_value") from None


def decoded(audio: str, param: str) -> Samples:
    """A whole sound, (N,) float32 at `SAMPLE_RATE`.

    Raises:
        ApiError: it is not base64 of 16 bit samples.
    """
    data = pcm(audio, param)
    if not data or len(data) % 2:
        raise ApiError(400, f"{param}: must hold 16 bit samples at 24 kHz", param=param, code="invalid_value")
    return np.asarray(soxr.resample(_floats(data), RATE, SAMPLE_RATE), np.float32)


def _floats(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


class AudioBuffer:
    """Sound of a session that is no item yet; places are counted in samples at `SAMPLE_RATE` from its first sound on.

    Attributes:
        begin, end: what is held.
    """

    def __init__(self) -> None:
        self.begin = self.end = 0
        self._pieces: list[Samples] = []
        self._odd = b""
        self._resampler = soxr.ResampleStream(RATE, SAMPLE_RATE, 1, dtype="float32")

    def append(self, data: bytes) -> Samples:
        """Takes 16 bit samples at 24 kHz, which may be cut anywhere; returns what came out of the resampler."""
        data = self._odd + data
        whole = len(data) // 2 * 2
        data, self._odd = data[:whole], data[whole:]
        return self._keep(self._resampler.resample_chunk(_floats(data)) if data else _EMPTY)

    def finish(self) -> None:
        """No sound follows for now: what the resampler holds back comes out."""
        self._keep(self._resampler.resample_chunk(_EMPTY, last=True))
        self._odd = b""
        self._resampler = soxr.ResampleStream(RATE, SAMPLE_RATE, 1, dtype="float32")

    def take(self, begin: int, end: int) -> Samples:
        """The sound between two places, as far as it is held; what is before `end` is no longer held."""
        held = np.concatenate(self._pieces) if self._pieces else _EMPTY
        cut = min(max(end - self.begin, 0), len(held))
        taken = held[max(begin - self.begin, 0) : cut].copy()
        self._pieces, self.begin = [held[cut:]], self.begin + cut
        return taken

    def drop(self, end: int) -> None:
        """What is before a place is no longer held."""
        while self._pieces and self.begin + len(self._pieces[0]) <= end:
            self.begin += len(self._pieces.pop(0))

    def _keep(self, samples: Samples) -> Samples:
        self._pieces.append(samples)
        self.end += len(samples)
        return samples
