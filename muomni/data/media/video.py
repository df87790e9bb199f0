"""Frames of a video file, through PyAV (the extra `video`). A list of pictures needs none of this."""

import math
import struct
from collections.abc import Iterator
from os import SEEK_END
from typing import TYPE_CHECKING, Any, BinaryIO

from muomni.data.media.containers import WHOLE, check_installed, opened_stream, stream_seconds
from muomni.data.media.image import MAX_PIXELS, upright
from muomni.data.media.media_ref import Source, name_of, opened
from muomni.data.media.signatures import HEAD_BYTES, signature_of
from muomni.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

# A stream is given up after so many frames, wherever it says that it ends.
_MAX_DECODED = 200_000
# Larger frames are made smaller, so that the 32 of a video take 100 MB at most; encoders take a fraction of this.
_FRAME_PIXELS = 1 << 20
# What a display matrix does to x and y, as EXIF counts orientations.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def video_frames(source: Source, rate: float = 1.0, max_frames: int = 32) -> "list[Image]":
    """Frames of a video, evenly in time from its first one.

    Frames stand upright, as the file says that they are shown. A video longer than max_frames / rate seconds is taken
    at its beginning. One frame is decoded at a time; only those that are kept stay in memory, made smaller where they
    have more than a million pixels.

    Args:
        source: a path, bytes or a reference to what FFmpeg reads (MP4, WebM, MKV, MOV, AVI, GIF …).
        rate: frames a second of the video's own time.
        max_frames: how many at most.

    Returns:
        RGB pictures, at least one.

    Raises:
        MediaError: PyAV is not installed; or, naming the source: missing, no video, broken, cut off (where the file
            says its length), without a frame, or with frames of more than `MAX_PIXELS`.
        ValueError: `rate` or `max_frames` is not positive.
    """
    if not rate > 0 or max_frames < 1:
        raise ValueError(f"rate ({rate}) and max_frames ({max_frames}) must be positive")
    check_installed("reading a video file", "a list of pictures does without")
    name = name_of(source)
    with opened(source) as file:
        torn = _is_torn(file)
        with opened_stream(file, name, "video") as (container, stream):
            if stream.width * stream.height > MAX_PIXELS:
                raise MediaError(f"{name}: has frames of {stream.width:,} × {stream.height:,} pixels, too large")
            frames, seconds = _kept(container.decode(stream), rate, max_frames)
            if not frames:
                raise MediaError(f"{name}: holds no frame")
            length = stream_seconds(stream)
            if len(frames) < max_frames and seconds < WHOLE * length:
                raise MediaError(f"{name}: is cut off: of {length:.1f} s of video {seconds:.1f} s are there")
            if len(frames) < max_frames and torn:
                raise MediaError(f"{name}: is cut off: its last bytes are not the end of a video")
            return frames


def _kept(decoded: Iterator[Any], rate: float, max_frames: int) -> "tuple[list[Image], float]":
    """The frames that are kept, and how many seconds of the video were decoded."""
    frames: list[Image] = []
    begin, end = 0.0, 0.0
    for number, frame in enumerate(decoded):
        time = number / 25 if frame.time is None else frame.time
        begin = begin if number else time
        end = time + (float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0)
        # Half a frame of a fast video early is in time: timestamps are rounded.
        if time - begin >= len(frames) / rate - 0.005:
            shrink = min(1.0, math.sqrt(_FRAME_PIXELS / (frame.width * frame.height)))
            size = {side: max(1, round(getattr(frame, side) * shrink)) for side in ("width", "height")}
            frames.append(upright(frame.to_image(**size), _orientation(frame)))
        if len(frames) == max_frames or number == _MAX_DECODED:
            break
    return frames, end - begin


def _orientation(frame: Any) -> int:
    """How a frame is turned, 1 to 8 as EXIF counts; 1 for angles that are no multiples of 90°."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(bytes(data)) >= 20:
            a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
            return _ORIENTATIONS.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)), 1)
    return 1


def _is_torn(file: BinaryIO) -> bool:
    """Whether a GIF or a transport stream, which do not say their length, stops in the midst of something."""
    signature, size = signature_of(file.read(HEAD_BYTES)), file.seek(0, SEEK_END)
    file.seek(max(0, size - HEAD_BYTES))
    torn = False
    if signature is not None and signature.name == "GIF":
        torn = not file.read().rstrip(b"\0").endswith(b";")
    elif signature is not None and signature.name == "MPEG-TS":
        torn = size % 188 != 0
    file.seek(0)
    return torn
