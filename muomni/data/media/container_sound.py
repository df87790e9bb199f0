"""The sound of a container, as browsers and telephones record it: WebM or MP4 with Opus or AAC, M4A, AAC, AMR, WMA.

S samples of a block at the sound's own rate, C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from muomni.data.media.containers import WHOLE, check_installed, opened_stream, stream_seconds
from muomni.data.media.media_ref import Source, name_of, opened
from muomni.data.media.signatures import HEAD_BYTES, signature_of
from muomni.errors import MediaError

# What libsndfile does not read, as `signatures` calls it.
_CONTAINERS = frozenset(
    {"M4A", "AAC", "AMR", "MP4 or MOV", "MOV", "AVI", "WebM or Matroska", "FLV", "MPEG", "MPEG-TS", "WMA or WMV"}
)
# Containers that say how long they are; of others FFmpeg makes a guess from the bit rate.
_WITH_LENGTH = ("mov", "matroska")
# Packets that are counted where a file does not say its length; more than any sound has that may be decoded.
_MOST_PACKETS = 200_000
_TIME_BASE = 1_000_000
# No codec makes blocks as short as this on average; each takes as long to decode as a long one.
_SHORTEST_BLOCK_S, _FIRST_BLOCKS = 0.001, 10_000


class ContainerSound:
    """The sound of a container whose header has been read.

    Args:
        name: of the file, for messages.
        container, stream: PyAV's.

    Attributes:
        name: of the file.
        length: in seconds, as the file says; 0 where it does not.
    """

    def __init__(self, name: str, container: Any, stream: Any) -> None:
        self.name = name
        self.length = 0.0
        self._container, self._stream = container, stream
        if container.format.name.split(",")[0] in _WITH_LENGTH:
            self.length = stream_seconds(stream)
            if not self.length and len(container.streams) == 1 and container.duration:
                self.length = container.duration / _TIME_BASE

    def seconds(self) -> float:
        """The length as the file says it, else from the times of its packets; nothing is decoded."""
        if self.length:
            return self.length
        base, begin, end = float(self._stream.time_base), None, 0.0
        for number, packet in enumerate(self._container.demux(self._stream)):
            if packet.pts is not None:
                begin = packet.pts * base if begin is None else begin
                end = max(end, (packet.pts + (packet.duration or 0)) * base)
            if number == _MOST_PACKETS:
                break
        return max(0.0, end - (begin or 0.0))

    def blocks(self) -> Iterator[tuple[NDArray[Any], int]]:
        """(S, C) samples in their own type, with their rate in Hz.

        Raises:
            MediaError: the file ends long before it says, or is made of very many very short blocks.
        """
        seconds = 0.0
        for number, frame in enumerate(self._container.decode(self._stream)):
            values = frame.to_ndarray()
            channels = frame.layout.nb_channels
            seconds += frame.samples / frame.sample_rate
            if number > _FIRST_BLOCKS and seconds < number * _SHORTEST_BLOCK_S:
                raise MediaError(f"{self.name}: is made of very many blocks of less than a millisecond; convert it")
            yield values.T if frame.format.is_planar else values.reshape(-1, channels), frame.sample_rate
        if seconds < WHOLE * self.length:
            raise MediaError(f"{self.name}: is cut off: of {self.length:.1f} s of sound {seconds:.1f} s are there")


def is_container(source: Source) -> bool:
    """Whether a source is read here rather than by libsndfile, by its first bytes.

    Raises:
        MediaError: it cannot be opened, or PyAV is not installed.
    """
    with opened(source) as file:
        signature = signature_of(file.read(HEAD_BYTES))
    if signature is None or signature.name not in _CONTAINERS:
        return False
    check_installed(f"{name_of(source)}: reading {signature.name}", "or convert its sound to WAV or FLAC")
    return True


@contextmanager
def opened_sound(source: Source) -> Iterator[ContainerSound]:
    """The first sound of a container; what is wrong with the content in the block is a MediaError.

    Raises:
        MediaError: naming the source: broken, or without a sound.
    """
    name = name_of(source)
    with opened(source) as file, opened_stream(file, name, "audio") as (container, stream):
        yield ContainerSound(name, container, stream)
