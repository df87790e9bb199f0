"""Frames of a video file, through PyAV (the extra `video`). A list of pictures needs none of this."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from muomni.data.image import MAX_PIXELS
from muomni.data.media import Source, name_of, opened
from muomni.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

# A stream is given up after so many frames, wherever it says that it ends.
_MAX_DECODED = 200_000


def video_frames(source: Source, rate: float = 1.0, max_frames: int = 32) -> "list[Image]":
    """Frames of a video, evenly in time from its first one.

    A video longer than max_frames / rate seconds is taken at its beginning. One frame is decoded at a time; only
    those that are kept stay in memory.

    Args:
        source: a path, bytes or a reference to what FFmpeg reads (MP4, WebM, MKV, MOV, GIF …).
        rate: frames a second of the video's own time.
        max_frames: how many at most.

    Returns:
        RGB pictures, at least one.

    Raises:
        MediaError: PyAV is not installed; or, naming the source: missing, no video, broken, without a frame,
            or with frames of more than `MAX_PIXELS`.
        ValueError: `rate` or `max_frames` is not positive.
    """
    if not rate > 0 or max_frames < 1:
        raise ValueError(f"rate ({rate}) and max_frames ({max_frames}) must be positive")
    try:
        import av
    except ImportError:
        raise MediaError(
            'reading a video file needs PyAV: pip install "muomni[video]"; a list of pictures does without'
        ) from None
    name = name_of(source)
    frames: list[Image] = []
    with opened(source) as file:
        try:
            with av.open(file, mode="r") as container:
                if not container.streams.video:
                    raise MediaError(f"{name}: holds no video")
                stream = container.streams.video[0]
                if stream.width * stream.height > MAX_PIXELS:
                    raise MediaError(f"{name}: has frames of {stream.width:,} × {stream.height:,} pixels, too large")
                begin = None
                decoded: Iterator[Any] = iter(container.decode(stream))
                for number, frame in enumerate(decoded):
                    time = number / 25 if frame.time is None else frame.time
                    begin = time if begin is None else begin
                    # Half a frame of a fast video early is in time: timestamps are rounded.
                    if time - begin >= len(frames) / rate - 0.005:
                        frames.append(frame.to_image())
                    if len(frames) == max_frames or number == _MAX_DECODED:
                        break
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"{name}: is no whole video: {error}") from None
    if not frames:
        raise MediaError(f"{name}: holds no frame")
    return frames
