"""Sounds: decoding with limits, one channel at 16 kHz, and the log-mel features.

S samples at 16 kHz, F frames of 10 ms.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from muomni.data.media.media_ref import MediaRef, Source, name_of, opened
from muomni.errors import MediaError
from muomni.ops.audio_frames import SAMPLE_RATE

if TYPE_CHECKING:
    import soundfile

Samples = NDArray[np.float32]
Sound = Source | tuple[Any, int]

MAX_SECONDS = 300.0
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")
RATES = (2_000, 768_000)

# Values of all channels together that are decoded at a time.
_BLOCK_VALUES = 1 << 18
# Of a sound in the usual order of channels: the sum of what a listener's two ears get, without the bass channel.
_SURROUND = {
    6: (0.5, 0.5, 0.7071, 0.0, 0.3536, 0.3536),
    8: (0.5, 0.5, 0.7071, 0.0, 0.3536, 0.3536, 0.3536, 0.3536),
}
# A WAV that was written to a pipe has no true length in its header, but one of these or more.
_UNKNOWN_WAV_BYTES = 0x7FFF_0000
# The length that an MP3's header gives may be off by some frames of 1,152 samples.
_MP3_SLACK = 4 * 1152


def load_audio(source: Sound, max_seconds: float = MAX_SECONDS) -> Samples:
    """The sound as one channel at 16 kHz.

    Several channels are averaged; 5.1 and 7.1 are mixed down by what reaches the ears. The resampler is
    soxr's high quality. Memory: that of the result, whatever the file's rate and channels.

    A file that was cut off is told from a short one by the length in its header (WAV, FLAC, MP3 with a Xing or Info
    frame) or by a page that is not whole (OGG). An MP3 without such a frame, as streams are, does not say its length:
    what is there is the sound, `audio_seconds` estimates from the first frames' bit rate, and too long ones are told
    while they are decoded.

    Args:
        source: a path, bytes of WAV, FLAC, OGG or MP3, a reference, or (samples, rate): numpy or torch, (S,)
            or two-dimensional with up to 8 channels in either place; integers are scaled by their range.
        max_seconds: longest sound.

    Returns:
        (S,) float32, S at least 1.

    Raises:
        MediaError: naming the source: missing, no sound, broken, cut off, empty, with NaN or infinite samples,
            or longer than `max_seconds`, found from the header where the format tells.
    """
    if isinstance(source, tuple):
        name = "the given samples"
        rate, blocks = _given(source, max_seconds)
        return _resampled(blocks, rate, name)
    name = name_of(source)
    with _opened(source) as sound:
        rate = _checked_rate(sound.samplerate, name)
        if _length_known(sound):
            _check_length(sound.frames, rate, max_seconds, name)
        return _resampled(_blocks(sound, max_seconds, name), rate, name)


def audio_seconds(source: Sound) -> float:
    """Length in seconds, from the header; only a FLAC that does not say its length is decoded. Of an MP3 see
    `load_audio`.

    Raises:
        MediaError: as `load_audio`, except for what only decoding shows and for the length.
    """
    if isinstance(source, tuple):
        samples, rate = _as_channels(source)
        return len(samples) / rate
    name = name_of(source)
    with _opened(source) as sound:
        rate = _checked_rate(sound.samplerate, name)
        frames = sound.frames if _length_known(sound) else sum(map(len, _blocks(sound, float("inf"), name)))
        if frames < 1:
            raise MediaError(f"{name}: holds no samples")
        return float(frames / rate)


@contextmanager
def _opened(source: Source) -> "Iterator[soundfile.SoundFile]":
    """The sound with its header read and its format checked."""
    import soundfile

    name = name_of(source)
    with opened(source) as file:
        _check_last_page(file, name)
        try:
            # An open file is read by libsndfile itself, what lies in memory through calls to Python.
            handle: Any = file
            if isinstance(source, str | Path) or (isinstance(source, MediaRef) and source.member is None):
                handle = file.fileno()
                os.lseek(handle, 0, os.SEEK_SET)
            with soundfile.SoundFile(handle, closefd=False) as sound:
                if sound.format not in FORMATS:
                    raise MediaError(f"{name}: is {sound.format_info}; allowed are WAV, FLAC, OGG and MP3")
                _check_whole(sound, name)
                yield sound
        except soundfile.LibsndfileError as error:
            raise MediaError(f"{name}: {_in_words(error, file)}") from None


def _check_whole(sound: "soundfile.SoundFile", name: str) -> None:
    """A file that ends before its header says; later blocks show it for FLAC and MP3."""
    lengths = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if lengths and int(lengths[2]) < int(lengths[1]) < _UNKNOWN_WAV_BYTES:
        raise MediaError(f"{name}: is cut off: {lengths[1]} bytes of sound were announced, {lengths[2]} are there")


def _check_last_page(file: BinaryIO, name: str) -> None:
    """An OGG file that ends in the middle of a page was cut off.

    The flag that marks the last page is not asked for: streams that were recorded lack it. What was cut off exactly
    between two pages, of some 4 kB each, is therefore taken for a shorter sound.
    """
    if file.read(4) == b"OggS":
        # A page is at most 64 kB long, so the last one begins in here.
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 17)))
        tail = file.read()
        page = tail[tail.rfind(b"OggS\0") :]
        segments = page[26] if len(page) > 26 else 255
        if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            raise MediaError(f"{name}: is cut off in the midst of a page")
    file.seek(0)


def _length_known(sound: "soundfile.SoundFile") -> bool:
    return bool(sound.frames < 1 << 60)


def _checked_rate(rate: int, name: str) -> int:
    low, high = RATES
    if not low <= rate <= high:
        raise MediaError(f"{name}: has a sample rate of {rate:,} Hz; allowed are {low:,} to {high:,}")
    return rate


def _check_length(frames: int, rate: int, max_seconds: float, name: str) -> None:
    if frames < 1:
        raise MediaError(f"{name}: holds no samples")
    if frames > max_seconds * rate:
        raise MediaError(
            f"{name}: lasts {_duration(frames / rate)}, longer than the {max_seconds:g} s allowed; cut it up"
        )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 600 else f"{whole // 3600} h {whole // 60 % 60:02} min"


def _blocks(sound: "soundfile.SoundFile", max_seconds: float, name: str) -> Iterator[Samples]:
    """One channel at the file's own rate, a block at a time."""
    count = max(1, _BLOCK_VALUES // sound.channels)
    # In OGG the channels come in another order, so all count alike there.
    weights = _mix(sound.channels, sound.format != "OGG")
    done = 0
    while len(block := sound.read(count, dtype="float32", always_2d=True)):
        done += len(block)
        _check_length(done, sound.samplerate, max_seconds, name)
        yield block @ weights
    slack = max(_MP3_SLACK, sound.frames // 100) if sound.format == "MP3" else 0
    if _length_known(sound) and done < sound.frames - slack:
        raise MediaError(f"{name}: is cut off: {sound.frames:,} samples were announced, {done:,} are there")


def _mix(channels: int, usual_order: bool) -> Samples:
    """Weights of the channels, which sum to 1."""
    weights = np.array(_SURROUND.get(channels, (1.0,) * channels) if usual_order else (1.0,) * channels)
    shares: Samples = (weights / weights.sum()).astype(np.float32)
    return shares


def _resampled(blocks: Iterator[Samples], rate: int, name: str) -> Samples:
    """All blocks one behind the other at 16 kHz."""
    import soxr

    # At the same rate nothing is computed.
    stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    parts = []
    first = None
    for block in blocks:
        if not np.isfinite(block).all() or np.abs(block).max(initial=0) > 1e9:
            raise MediaError(f"{name}: holds samples that are no numbers or far too large (NaN, infinite)")
        first = block[:1] if first is None else first
        parts.append(block if stream is None else stream.resample_chunk(block))
    if first is None:
        raise MediaError(f"{name}: holds no samples")
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    samples: Samples = np.concatenate(parts)
    # Less than one sample at 16 kHz is still one.
    return samples if len(samples) else np.asarray(first, np.float32)


def _as_channels(source: tuple[Any, int]) -> tuple[NDArray[Any], int]:
    """(samples, rate) as (S, channels) in their own type."""
    name = "the given samples"
    if len(source) != 2 or not isinstance(source[1], int | np.integer) or isinstance(source[1], bool):
        raise MediaError(f"{name}: must be (samples, rate) with a whole number of Hz")
    values, rate = source
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    samples = np.asarray(values)
    if samples.ndim == 2:
        samples = samples.T if samples.shape[0] <= 8 < samples.shape[1] else samples
    elif samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or samples.shape[1] > 1024:
        raise MediaError(f"{name}: must be (S,) or (S, channels), not of shape {samples.shape}")
    if samples.dtype.kind not in "fiu":
        raise MediaError(f"{name}: must be numbers, not {samples.dtype}")
    if 0 in samples.shape:
        raise MediaError(f"{name}: holds no samples")
    return samples, _checked_rate(int(rate), name)


def _given(source: tuple[Any, int], max_seconds: float) -> tuple[int, Iterator[Samples]]:
    samples, rate = _as_channels(source)
    _check_length(len(samples), rate, max_seconds, "the given samples")

    def blocks() -> Iterator[Samples]:
        weights = _mix(samples.shape[1], True)
        for begin in range(0, len(samples), _BLOCK_VALUES):
            block = samples[begin : begin + _BLOCK_VALUES]
            if samples.dtype.kind == "f":
                scaled = block.astype(np.float32)
            else:
                half = 2.0 ** (8 * samples.dtype.itemsize - 1)
                scaled = ((block - (half if samples.dtype.kind == "u" else 0.0)) / half).astype(np.float32)
            yield scaled @ weights

    return rate, blocks()


def _in_words(error: "soundfile.LibsndfileError", file: BinaryIO) -> str:
    """What is wrong with a file that libsndfile does not read."""
    if isinstance(file, io.BytesIO) or file.seekable():
        file.seek(0)
        start = file.read(64)
        if start[:8] == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff":
            return "is no sound; it looks like a picture"
        if start.isascii() and start.strip() and b"\0" not in start:
            return "is no sound in WAV, FLAC, OGG or MP3; it looks like text"
    return f"is no whole sound in WAV, FLAC, OGG or MP3: {error.error_string}"
