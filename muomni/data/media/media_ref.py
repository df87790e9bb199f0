"""Where a picture or sound comes from, and its bytes."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

from muomni.data.media.archives import open_archive
from muomni.data.media.parsing import parsing, reason_of, shown
from muomni.errors import MediaError

# What has an encoder; a video is a list of pictures.
Kind = Literal["image", "audio"]
MediaKind = Literal["image", "audio", "video"]
# Whole pictures are read into memory; the largest useful ones are far smaller.
MAX_BYTES = 256 << 20
# Files above this are opened for each use rather than held in memory.
MAX_HELD_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MediaRef:
    """A picture, sound or video on disk; small, hashable, and nothing is opened by making one.

    Attributes:
        kind: what it should be.
        path: the file, or the archive that holds it (zip, tar).
        member: its name in the archive; None for a file of its own.
    """

    kind: MediaKind
    path: str
    member: str | None = None

    def __str__(self) -> str:
        """The name in messages to the user."""
        return shown(self.path) if self.member is None else f"{shown(self.path)}: {shown(self.member)}"


@dataclass(frozen=True, eq=False)
class MediaContent:
    """The bytes of a source that was read already, so that it is opened once however often it is looked at.

    Attributes:
        origin: where they come from, for messages to the user.
        data: all of them.
    """

    origin: "str | Path | bytes | MediaRef"
    data: bytes

    @cached_property
    def digest(self) -> bytes:
        """A hash of the bytes."""
        return blake2b(self.data, digest_size=16).digest()


Source = str | Path | bytes | MediaRef | MediaContent


def name_of(source: Source) -> str:
    """How messages to the user call a source; bytes have no name but their kind."""
    if isinstance(source, MediaContent):
        source = source.origin
    if isinstance(source, bytes):
        return f"the given {len(source):,} bytes"
    return str(source) if isinstance(source, MediaRef) else shown(str(source))


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The source as a file with `seek`; it need not fit the memory.

    Raises:
        MediaError: there is no such file or member, it is no regular file, or it is empty.
    """
    if isinstance(source, MediaRef) and source.member is not None:
        file = open_archive(source.path).open(source.member)
    elif isinstance(source, bytes | MediaContent):
        file = io.BytesIO(source if isinstance(source, bytes) else source.data)
    else:
        file = _open_file(source.path if isinstance(source, MediaRef) else os.fspath(source))
    with file:
        with parsing(name_of(source), "cannot be read"):
            if not file.read(1):
                raise MediaError(f"{name_of(source)}: is empty")
            file.seek(0)
        yield file


def open_bytes(source: Source, limit: int = MAX_BYTES) -> bytes:
    """All bytes of the source.

    Raises:
        MediaError: as `opened`, or there are more than `limit`.
    """
    content = _read_up_to(source, limit)
    if content is None:
        raise MediaError(f"{name_of(source)}: is larger than {limit >> 20} MB")
    return content


def read_media(source: Any, limit: int = MAX_HELD_BYTES) -> Any:
    """The source with its bytes in memory, so that it is opened once for its size, its hash and its features.

    What has no bytes (a PIL picture, samples) and what has more than `limit` comes back as it is.

    Raises:
        MediaError: as `opened`.
    """
    if not isinstance(source, str | Path | bytes | MediaRef):
        return source
    content = _read_up_to(source, limit)
    return source if content is None else MediaContent(source, content)


def _read_up_to(source: Source, limit: int) -> bytes | None:
    """All bytes; None where there are more than `limit`."""
    if isinstance(source, bytes | MediaContent):
        return source if isinstance(source, bytes) else source.data
    pieces: list[bytes] = []
    size = 0
    for piece in blocks_of(source):
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def blocks_of(source: Source) -> Iterator[bytes]:
    """The source's bytes a megabyte at a time: a reader makes room for all that it is asked for.

    Raises:
        MediaError: as `opened`, or reading fails.
    """
    with opened(source) as file, parsing(name_of(source), "cannot be read"):
        while block := file.read(_BLOCK_BYTES):
            yield block


def _open_file(path: str) -> BinaryIO:
    """A regular file; anything else, a pipe for example, could be read for ever."""
    name = shown(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MediaError(f"{name}: is not a file")
        return open(path, "rb")
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair in the path
        raise MediaError(f"{name}: cannot be read: {reason_of(error)}") from None
