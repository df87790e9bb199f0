"""Sounds in containers, written by PyAV."""

import io
from functools import cache
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason='PyAV is missing: pip install "muomni[video]"')
# Format, codec and rate of what browsers and telephones record.
FORMS = {
    "webm": ("webm", "libopus", 48_000),
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 48_000),
    "aac": ("adts", "aac", 44_100),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "mka": ("matroska", "flac", 16_000),
    "mov": ("mov", "pcm_s16le", 16_000),
    "ts": ("mpegts", "aac", 48_000),
}


class _Pipe:
    """Cannot be sought in, so that no length comes into the header: what a browser records while it records."""

    def __init__(self) -> None:
        self.out = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self.out.write(data)


@cache
def sound(form: str = "webm", seconds: float = 1.0, channels: int = 1, *, live: bool = False) -> bytes:
    """A tone of 440 Hz at half of the full scale, in the first channel alone."""
    name, codec, rate = FORMS[form]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    values = np.zeros((channels, round(rate * seconds)), np.float32)
    values[0] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(values.shape[1]) / rate)
    frame = av.AudioFrame.from_ndarray(values, "fltp", layout)
    frame.sample_rate, frame.pts = rate, 0
    pipe = _Pipe()
    target: Any = pipe if live else pipe.out
    with av.open(target, "w", format=name, options={"live": "1"} if live else {}) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        to_codec = av.AudioResampler(stream.format.name, layout, rate, stream.codec_context.frame_size or 1024)
        for each in [*to_codec.resample(frame), *to_codec.resample(None)]:
            file.mux(stream.encode(each))
        file.mux(stream.encode())
    return pipe.out.getvalue()
