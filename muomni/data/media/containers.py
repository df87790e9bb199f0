"""Files that hold pictures and sounds as streams (MP4, WebM, MKV, MOV, AVI …), through PyAV (the extra `video`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

from muomni.data.media.parsing import parsing
from muomni.data.media.signatures import HEAD_BYTES, looks_like
from muomni.errors import MediaError

# Of the length that a file says: less is a file that was cut off.
WHOLE = 0.9
# Containers; no playlists and scripts, which would have other files opened.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,aac,amr"
_NOUNS = {"video": "video", "audio": "sound"}
_CONVERT = {"video": "MP4", "audio": "WAV or FLAC"}


def check_installed(what: str, instead: str) -> None:
    """Refuses where PyAV is missing.

    Args:
        what: is to be read, for the message.
        instead: what does without it.

    Raises:
        MediaError: it is.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise MediaError(f'{what} needs PyAV: pip install "muomni[video]"; {instead}') from None


@contextmanager
def opened_stream(file: BinaryIO, name: str, kind: Literal["video", "audio"]) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of a kind; what is wrong with the content in the block is a MediaError.

    Args:
        file: at its beginning; `check_installed` has been called.
        name: of the file, for messages.
        kind: of the stream.

    Raises:
        MediaError: naming the file: no container, broken, or without such a stream.
    """
    import av

    head, noun = file.read(HEAD_BYTES), _NOUNS[kind]
    file.seek(0)
    # Titles may be in any encoding.
    options: dict[str, Any] = {"options": {"format_whitelist": _FORMATS}, "metadata_errors": "replace"}
    wrong = f"is no whole {noun}{looks_like(head, kind)}"
    try:
        with parsing(name, wrong), av.open(file, mode="r", **options) as container:
            streams = container.streams.video if kind == "video" else container.streams.audio
            if not streams:
                raise MediaError(f"{name}: holds no {noun}")
            if streams[0].codec_context is None:
                raise MediaError(f"{name}: its {noun} has a codec that is not known; convert it to {_CONVERT[kind]}")
            yield container, streams[0]
    except av.error.MemoryError:  # FFmpeg's own, of what the file claims to need
        raise MediaError(f"{name}: {wrong}: it asks for more memory than there is") from None


def stream_seconds(stream: Any) -> float:
    """Seconds of a stream as the file says; 0 where it does not."""
    rate = getattr(stream, "average_rate", None)
    if stream.frames and rate:  # of an AVI the duration is what is there
        return float(stream.frames / rate)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = [*stream.metadata.get("DURATION", "").split(":"), "", ""][:3]  # Matroska
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
