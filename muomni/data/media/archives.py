"""Archives of pictures and sounds, zip and tar, of which any member can be read at any time.

How it works. An archive is opened once, its list of members is kept, and each read goes straight to the
member's bytes with `pread`, which has no position to share: threads and forked processes may read the
same archive at once without a lock. The archives used last stay open; one that changed on disk is opened
anew. Names of members are only looked up in that list, never turned into paths, so a member named `../../x`
is as harmless as any other.
"""

import io
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from muomni.data.media.parsing import parsing, reason_of, shown
from muomni.errors import MediaError

# What is unpacked is held in memory whole.
MAX_UNPACKED_BYTES = 256 << 20
# Smaller members are read whole, larger ones through a window on the archive where they are not packed.
_WHOLE_BYTES = 16 << 20
_ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")


def open_archive(path: str) -> "Archive":
    """The archive at `path`, opened before or now.

    Raises:
        MediaError: the file is missing or no archive.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MediaError(f"{shown(path)}: {reason_of(error)}") from None
    return _opened(path, status.st_mtime_ns, status.st_size)


# Files are closed when the last reader of a dropped archive lets go of it.
@lru_cache(maxsize=32)
def _opened(path: str, *_stamp: int) -> "Archive":
    """Keyed by time and size too, so that a replaced archive is not read by the old one's list."""
    name = shown(path)
    if not Path(path).is_file():
        raise MediaError(f"{name}: is not a file, so no archive")
    with parsing(name, "cannot be read"):
        file = _File(path)
        start = file.read_at(0, 512)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        with parsing(name, "is not a whole zip file"):
            return Archive(file, _zip_entries(path))
    if start[257:262] == b"ustar":
        with parsing(name, "is not a whole tar file"):
            return Archive(file, _tar_entries(path))
    if start[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise MediaError(
            f"{name}: is packed as a whole, so its members cannot be read one by one; unpack it to a plain .tar"
        )
    raise MediaError(f"{name}: is no zip or tar file; it begins with {bytes(start[:12])!r}")


class _File:
    """A file that is read at any place by any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when nobody holds it any more)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the file's end."""
        if not hasattr(os, "pread"):  # Windows
            with open(self.path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        parts = []
        while size > 0 and (part := os.pread(self._file.fileno(), size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Window(io.RawIOBase):
    """Part of a file as a file of its own."""

    def __init__(self, file: _File, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._place = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        content = self._file.read_at(self._begin + self._place, wanted)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a member lies.

    Attributes:
        offset: of its header where it is `zipped`, of its content in a tar.
        stored, size: bytes in the archive, and unpacked.
        crc: of the content; None where the archive has none.
        refused: why it cannot be read.
    """

    offset: int
    stored: int
    size: int
    zipped: bool = False
    deflated: bool = False
    crc: int | None = None
    refused: str | None = None


class Archive:
    """An archive that stays open. Members are stored as they are, or in a zip also deflated."""

    def __init__(self, file: _File, entries: Mapping[str, _Entry]) -> None:
        self._file = file
        self._entries = entries

    @property
    def names(self) -> Collection[str]:
        """The members' names, without folders."""
        return self._entries.keys()

    def open(self, member: str) -> BinaryIO:
        """The member as a file of its own, with `seek`; what is read whole is checked against its checksum.

        Raises:
            MediaError: naming archive and member: not there, broken, encrypted, or too large unpacked.
        """
        path, entries = self._file.path, self._entries
        name = f"{shown(path)}: {shown(member)}"
        entry = entries.get(member) or entries.get(f"./{member}")
        if entry is None:
            example = f", for example {shown(next(iter(entries)))}" if entries else ""
            raise MediaError(f"{name}: is not in this archive, which holds {len(entries):,} files{example}")
        if entry.refused:
            raise MediaError(f"{name}: {entry.refused}")
        with parsing(name, "the archive is broken"):
            begin = self._content_of_zipped(name, entry) if entry.zipped else entry.offset
            if not entry.deflated and entry.stored > _WHOLE_BYTES:
                return io.BufferedReader(_Window(self._file, begin, entry.stored), 1 << 16)
            content = self._file.read_at(begin, entry.stored)
            if entry.deflated:
                # One byte more than the list says would show that it lies; never more than that is unpacked.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.size + 1)
        if len(content) != entry.size:
            raise MediaError(
                f"{name}: the archive is broken: {entry.size:,} bytes were announced, not {len(content):,}"
            )
        if entry.crc is not None and zlib.crc32(content) != entry.crc:
            raise MediaError(f"{name}: the archive is broken: the checksum does not match")
        return io.BytesIO(content)

    def _content_of_zipped(self, name: str, entry: _Entry) -> int:
        """Where the content begins behind the member's own header."""
        header = self._file.read_at(entry.offset, _ZIP_LOCAL_HEADER.size)
        if len(header) < _ZIP_LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise MediaError(f"{name}: the zip file is broken: the member does not begin where its list says")
        _, name_size, extra_size = _ZIP_LOCAL_HEADER.unpack(header)
        return entry.offset + _ZIP_LOCAL_HEADER.size + int(name_size) + int(extra_size)


def _zip_entries(path: str) -> dict[str, _Entry]:
    with zipfile.ZipFile(path) as zip_file:
        return {info.filename: _zip_entry(info) for info in zip_file.infolist() if info.filename and not info.is_dir()}


def _zip_entry(info: zipfile.ZipInfo) -> _Entry:
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    refused = None
    if info.flag_bits & 1:
        refused = "is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refused = "is packed by a method other than deflate; pack it as deflated or stored"
    elif deflated and max(info.file_size, info.compress_size) > MAX_UNPACKED_BYTES:
        refused = (
            f"unpacks to {info.file_size >> 20:,} MB, more than the {MAX_UNPACKED_BYTES >> 20} MB that are unpacked "
            "into memory; store it unpacked"
        )
    return _Entry(info.header_offset, info.compress_size, info.file_size, True, deflated, info.CRC, refused)


def _tar_entries(path: str) -> dict[str, _Entry]:
    """Of a plain tar file, as in shards of WebDataset; a link to another member is that member."""
    entries: dict[str, _Entry] = {}
    links: list[tuple[str, str]] = []
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            if info.isreg() and not info.issparse():
                entries[info.name] = _Entry(info.offset_data, info.size, info.size)
            elif info.islnk():
                links.append((info.name, info.linkname))
            elif info.issym():
                links.append(
                    (info.name, posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname)))
                )
    for name, target in links:
        if (entry := entries.get(target) or entries.get(f"./{target}")) is not None:
            entries[name] = entry
    return entries
