"""Sounds: decoding with limits, one channel at 16 kHz, and the log-mel features.

S samples at 16 kHz, F frames of 10 ms.
"""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from muomni.data.media.container_sound import is_container, opened_sound
from muomni.data.media.media_ref import MAX_BYTES, MediaRef, Source, name_of, opened
from muomni.data.media.parsing import parsing
from muomni.data.media.signatures import HEAD_BYTES, looks_like
from muomni.data.media.sound_streams import check_single_flac, joined_sounds
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
    while they are decoded. Sounds that were joined (chained OGG, MP3 or WAV behind another) are read to the end.

    Args:
        source: a path, bytes of WAV, FLAC, OGG or MP3, with PyAV also of WebM, MP4, M4A, AAC and the like, a
            reference, or (samples, rate): numpy or torch, (S,) or two-dimensional with up to 8 channels in either
            place; integers are scaled by their range.
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
    if is_container(source):
        return _load_container(source, max_seconds)
    name = name_of(source)
    parts: list[Samples] = []
    with _opened(source, whole=True) as sounds:
        for sound in sounds:
            rate = _checked_rate(sound.samplerate, name)
            left = max_seconds - sum(map(len, parts)) / SAMPLE_RATE
            if _length_known(sound):
                _check_length(sound.frames, rate, left, max_seconds, name)
            parts.append(_resampled(_blocks(sound, left, max_seconds, name), rate, name))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def audio_seconds(source: Sound, max_seconds: float = math.inf) -> float:
    """Length in seconds, from the header; only a FLAC that does not say its length is decoded.

    Of an MP3 see `load_audio`; of a WebM that does not say its length, as browsers record it, packets are counted.

    Args:
        source: what `load_audio` takes.
        max_seconds: up to which what does not say its length is decoded.

    Raises:
        MediaError: as `load_audio`, except for what only decoding shows and for a length that the header says.
    """
    if isinstance(source, tuple):
        samples, rate = _as_channels(source)
        return len(samples) / rate
    name = name_of(source)
    if is_container(source):
        with opened_sound(source) as sound:
            seconds = sound.seconds()
        if not seconds:
            raise MediaError(f"{name}: holds no samples")
        return seconds
    seconds = 0.0
    with _opened(source) as sounds:
        for sound in sounds:
            rate = _checked_rate(sound.samplerate, name)
            frames = sound.frames
            if not _length_known(sound):
                frames = sum(map(len, _blocks(sound, max_seconds - seconds, max_seconds, name)))
            if frames < 1:
                raise MediaError(f"{name}: holds no samples")
            seconds += frames / rate
    return seconds


def _load_container(source: Source, max_seconds: float) -> Samples:
    """The sound of a container; see `load_audio`."""
    with opened_sound(source) as sound:
        if sound.length:
            _check_length(math.ceil(sound.length * SAMPLE_RATE), SAMPLE_RATE, max_seconds, max_seconds, sound.name)
        blocks = sound.blocks()
        first = next(blocks, None)
        if first is None:
            raise MediaError(f"{sound.name}: holds no samples")
        rate = _checked_rate(first[1], sound.name)

        def mixed() -> Iterator[Samples]:
            done = 0
            for values, its_rate in chain([first], blocks):
                if its_rate != rate:
                    raise MediaError(
                        f"{sound.name}: its sample rate changes from {rate:,} to {its_rate:,} Hz; convert it"
                    )
                done += len(values)
                _check_length(done, rate, max_seconds, max_seconds, sound.name)
                yield _scaled(values) @ _mix(values.shape[1], True)

        return _resampled(mixed(), rate, sound.name)


@contextmanager
def _opened(source: Source, whole: bool = False) -> "Iterator[Iterator[soundfile.SoundFile]]":
    """The sounds of a file, one behind the other, each with its header read and its format checked.

    Args:
        source: of the bytes.
        whole: all of it is to be read, so a FLAC with another behind it is refused: only reading finds that one.
    """
    import soundfile

    name = name_of(source)
    with opened(source) as file, parsing(name, "the sound cannot be read"):
        head = file.read(HEAD_BYTES)
        if whole and head.startswith(b"fLaC"):
            check_single_flac(file, name)
        try:
            yield _each(file, joined_sounds(file, name), source, name)
        except soundfile.LibsndfileError as error:
            why = f"{looks_like(head, 'audio')}: {error.error_string}"
            raise MediaError(f"{name}: is no whole sound in WAV, FLAC, OGG or MP3{why}") from None


def _each(
    file: BinaryIO, places: "list[tuple[int, int]]", source: Source, name: str
) -> "Iterator[soundfile.SoundFile]":
    import soundfile

    for begin, end in places:
        file.seek(begin)
        handle: Any = file
        if len(places) > 1:
            if end - begin > MAX_BYTES:
                raise MediaError(f"{name}: holds several sounds joined, one of more than {MAX_BYTES >> 20} MB")
            handle = io.BytesIO(file.read(end - begin))
        elif isinstance(source, str | Path) or (isinstance(source, MediaRef) and source.member is None):
            # An open file is read by libsndfile itself, what lies in memory through calls to Python.
            handle = file.fileno()
            os.lseek(handle, 0, os.SEEK_SET)
        with soundfile.SoundFile(handle, closefd=False) as sound:
            if sound.format not in FORMATS:
                raise MediaError(f"{name}: is {sound.format_info}; allowed are WAV, FLAC, OGG and MP3")
            _check_whole(sound, name)
            yield sound


def _check_whole(sound: "soundfile.SoundFile", name: str) -> None:
    """A file that ends before its header says; later blocks show it for FLAC and MP3."""
    lengths = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if lengths and int(lengths[2]) < int(lengths[1]) < _UNKNOWN_WAV_BYTES:
        raise MediaError(f"{name}: is cut off: {lengths[1]} bytes of sound were announced, {lengths[2]} are there")


def _length_known(sound: "soundfile.SoundFile") -> bool:
    return bool(sound.frames < 1 << 60)


def _checked_rate(rate: int, name: str) -> int:
    low, high = RATES
    if not low <= rate <= high:
        raise MediaError(f"{name}: has a sample rate of {rate:,} Hz; allowed are {low:,} to {high:,}")
    return rate


def _check_length(frames: int, rate: int, left: float, max_seconds: float, name: str) -> None:
    """Refuses more than the seconds that are `left` of `max_seconds`, behind sounds before it in the same file."""
    if frames < 1:
        raise MediaError(f"{name}: holds no samples")
    if frames > left * rate:
        seconds = _duration(max_seconds - left + frames / rate)
        raise MediaError(f"{name}: lasts {seconds}, longer than the {max_seconds:g} s allowed; cut it up")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 600 else f"{whole // 3600} h {whole // 60 % 60:02} min"


def _blocks(sound: "soundfile.SoundFile", left: float, max_seconds: float, name: str) -> Iterator[Samples]:
    """One channel at the file's own rate, a block at a time."""
    count = max(1, _BLOCK_VALUES // sound.channels)
    # In OGG the channels come in another order, so all count alike there.
    weights = _mix(sound.channels, sound.format != "OGG")
    done = 0
    while len(block := sound.read(count, dtype="float32", always_2d=True)):
        done += len(block)
        _check_length(done, sound.samplerate, left, max_seconds, name)
        yield block @ weights
    # MP3 may also stand in a WAV.
    slack = max(_MP3_SLACK, sound.frames // 100) if sound.subtype.startswith("MPEG_LAYER") else 0
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
    if samples.dtype.kind in "iu" and samples.dtype.itemsize == 8:
        raise MediaError(f"{name}: are {samples.dtype}, whose full scale is not known: give int16, or floats up to 1")
    if 0 in samples.shape:
        raise MediaError(f"{name}: holds no samples")
    return samples, _checked_rate(int(rate), name)


def _given(source: tuple[Any, int], max_seconds: float) -> tuple[int, Iterator[Samples]]:
    samples, rate = _as_channels(source)
    _check_length(len(samples), rate, max_seconds, max_seconds, "the given samples")

    def blocks() -> Iterator[Samples]:
        weights = _mix(samples.shape[1], True)
        for begin in range(0, len(samples), _BLOCK_VALUES):
            yield _scaled(samples[begin : begin + _BLOCK_VALUES]) @ weights

    return rate, blocks()


def _scaled(samples: NDArray[Any]) -> Samples:
    """Floats as they are, integers by their range."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    scaled: Samples = ((samples - (half if samples.dtype.kind == "u" else 0.0)) / half).astype(np.float32)
    return scaled
