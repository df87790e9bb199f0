"""Archives of pictures and sounds, zip, tar and Parquet, of which any member can be read at any time.

How it works. An archive is opened once, its list of members is kept, and each read goes straight to the
member's bytes with `pread`, which has no position to share: threads and forked processes may read the
same archive at once without a lock. The archives used last stay open; one that changed on disk is opened
anew. Names of members are only looked up in that list, never turned into paths, so a member named `../../x`
is as harmless as any other.

In a Parquet file a member is `COLUMN:ROW` (rows from 0), for example `image:17`, with `/KEY` for each step
further inside the cell, or the name that the file gives it: the `path` beside the `bytes` of a Hugging
Face image column. Parquet has no access to a single row: a read decodes a row group, of which the last few
stay in memory. For shuffled reading zip and tar are the better choice.
"""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from muomni.errors import MediaError

# What is unpacked is held in memory whole.
MAX_UNPACKED_BYTES = 256 << 20
# Smaller members are read whole, larger ones through a window on the archive where they are not packed.
_WHOLE_BYTES = 16 << 20
_ROW_GROUP_BYTES = 256 << 20
_ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Archive(Protocol):
    """An archive that stays open; `names` are those of its members, without folders."""

    @property
    def names(self) -> Collection[str]:
        """The members' names."""
        ...

    def open(self, member: str) -> BinaryIO:
        """The member as a file of its own, with `seek`.

        Raises:
            MediaError: naming archive and member: not there, broken, encrypted, or too large unpacked.
        """
        ...


def open_archive(path: str) -> Archive:
    """The archive at `path`, opened before or now.

    Raises:
        MediaError: the file is missing or no archive.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: {_reason(error)}") from None
    return _opened(path, status.st_mtime_ns, status.st_size)


# Files are closed when the last reader of a dropped archive lets go of it.
@lru_cache(maxsize=32)
def _opened(path: str, mtime_ns: int, size: int) -> Archive:
    """Keyed by time and size too, so that a replaced archive is not read by the old one's list."""
    try:
        if not Path(path).is_file():
            raise MediaError(f"{path}: is not a file, so no archive")
        start = _File(path).read_at(0, 512)
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return ZipArchive(path)
        if start[:4] == b"PAR1":
            return ParquetArchive(path)
        if start[257:262] == b"ustar":
            return TarArchive(path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {_reason(error)}") from None
    if start[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise MediaError(
            f"{path}: is packed as a whole, so its members cannot be read one by one; unpack it to a plain .tar"
        )
    raise MediaError(f"{path}: is no zip, tar or Parquet file; it begins with {bytes(start[:12])!r}")


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
    """Where a member lies. `offset` is that of its header in a zip, of its content in a tar."""

    offset: int
    stored: int
    size: int
    deflated: bool = False
    crc: int | None = None
    refused: str | None = None


class ZipArchive:
    """A zip file whose members are stored or deflated."""

    def __init__(self, path: str) -> None:
        try:
            with zipfile.ZipFile(path) as zip_file:
                infos = [info for info in zip_file.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
            raise MediaError(f"{path}: is not a whole zip file: {error}") from None
        self._file = _File(path)
        self._entries = {info.filename: _zip_entry(info) for info in infos}

    @property
    def names(self) -> Collection[str]:
        """The members' names."""
        return self._entries.keys()

    def open(self, member: str) -> BinaryIO:
        """See `Archive.open`; what is read whole is checked against its checksum."""
        name = f"{self._file.path}: {member}"
        entry = _found(self._entries, member, self._file.path)
        header = self._file.read_at(entry.offset, _ZIP_LOCAL_HEADER.size)
        if len(header) < _ZIP_LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise MediaError(f"{name}: the zip file is broken: the member does not begin where its list says")
        _, name_size, extra_size = _ZIP_LOCAL_HEADER.unpack(header)
        begin = entry.offset + _ZIP_LOCAL_HEADER.size + name_size + extra_size
        if not entry.deflated:
            return _stored(self._file, name, begin, entry)
        packed = self._file.read_at(begin, entry.stored)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than the list says would show that it lies; never more than that is unpacked.
            content = unpacker.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise MediaError(f"{name}: the zip file is broken: {error}") from None
        return _checked(name, content, entry)


class TarArchive:
    """A plain tar file, as in shards of WebDataset."""

    def __init__(self, path: str) -> None:
        try:
            with tarfile.open(path, "r:") as tar:
                self._entries = {
                    info.name: _Entry(info.offset_data, info.size, info.size)
                    for info in tar
                    if info.isreg() and not info.issparse()
                }
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise MediaError(f"{path}: is not a whole tar file: {error}") from None
        self._file = _File(path)

    @property
    def names(self) -> Collection[str]:
        """The members' names."""
        return self._entries.keys()

    def open(self, member: str) -> BinaryIO:
        """See `Archive.open`."""
        entry = _found(self._entries, member, self._file.path)
        return _stored(self._file, f"{self._file.path}: {member}", entry.offset, entry)


class ParquetArchive:
    """A Parquet file with pictures or sounds in binary columns, or in columns of structs with `bytes`."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        try:
            with pq.ParquetFile(path) as file:
                self._metadata, self._schema = file.metadata, file.schema_arrow
        except (pa.ArrowInvalid, OSError) as error:
            raise MediaError(f"{path}: cannot be read as Parquet: {error}") from None
        rows = [self._metadata.row_group(n).num_rows for n in range(self._metadata.num_row_groups)]
        self._first_rows = [sum(rows[:n]) for n in range(len(rows) + 1)]

    @property
    def names(self) -> Collection[str]:
        """The members' names: those that the file gives, else `COLUMN:ROW`."""
        rows = range(self._metadata.num_rows)
        columns = self._media_columns
        return self._named.keys() or [f"{column}:{row}" for column in columns for row in rows]

    def open(self, member: str) -> BinaryIO:
        """See `Archive.open`."""
        name = f"{self._path}: {member}"
        column, row, steps = self._place(member)
        group = max(n for n, first in enumerate(self._first_rows) if first <= row)
        try:
            value = _row_group(self, group, column)[row - self._first_rows[group]].as_py()
        except OSError as error:  # ArrowInvalid is a ValueError, what the file system says an OSError
            raise MediaError(f"{name}: cannot be read: {error}") from None
        except ValueError as error:
            raise MediaError(f"{name}: the Parquet file is broken: {error}") from None
        for step in steps:
            try:
                value = value[int(step)] if isinstance(value, Sequence) else value[step]
            except (LookupError, TypeError, ValueError):
                raise MediaError(f"{name}: there is nothing at {step!r} in that cell") from None
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise MediaError(f"{name}: holds no bytes, but {'nothing' if value is None else type(value).__name__}")
        return io.BytesIO(value)

    def read_column(self, group: int, column: str) -> Any:
        """A column of a row group as an Arrow array."""
        import pyarrow.parquet as pq

        size = sum(
            chunk.total_uncompressed_size
            for n in range(self._metadata.row_group(group).num_columns)
            if (chunk := self._metadata.row_group(group).column(n)).path_in_schema.split(".")[0] == column
        )
        if size > _ROW_GROUP_BYTES:
            raise MediaError(
                f"{self._path}: column {column!r} takes {size >> 20} MB in row group {group}, more than "
                f"{_ROW_GROUP_BYTES >> 20}; write the file with smaller row groups (row_group_size=100)"
            )
        with pq.ParquetFile(self._path, metadata=self._metadata, pre_buffer=False) as file:
            return file.read_row_group(group, columns=[column], use_threads=False).column(0)

    def _place(self, member: str) -> tuple[str, int, list[str]]:
        column, separator, rest = member.partition(":")
        number, *steps = rest.split("/")
        if separator and column in self._schema.names and number.isdecimal():
            if int(number) >= self._metadata.num_rows:
                raise MediaError(f"{self._path}: {member}: the file has only {self._metadata.num_rows} rows")
            return column, int(number), steps
        if member not in self._named:
            raise MediaError(
                f"{self._path}: {member}: is not in this file; name it COLUMN:ROW, for example "
                f"{next(iter(self._media_columns), 'image')}:0"
            )
        found = self._named[member]
        return found[0], found[1], []

    @cached_property
    def _media_columns(self) -> list[str]:
        import pyarrow as pa

        def is_bytes(kind: Any) -> bool:
            return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

        return [
            field.name
            for field in self._schema
            if is_bytes(field.type)
            or (pa.types.is_struct(field.type) and any(c.name == "bytes" and is_bytes(c.type) for c in field.type))
        ]

    @cached_property
    def _named(self) -> dict[str, tuple[str, int]]:
        """Column and row of each `path` beside `bytes`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        named = {}
        with pq.ParquetFile(self._path, metadata=self._metadata) as file:
            for column in self._media_columns:
                kind = self._schema.field(column).type
                if pa.types.is_struct(kind) and any(inner.name == "path" for inner in kind):
                    cells = file.read(columns=[f"{column}.path"]).column(0).to_pylist()
                    paths = (cell and cell["path"] for cell in cells)
                    named.update({path: (column, row) for row, path in enumerate(paths) if path})
        return named


@lru_cache(maxsize=4)
def _row_group(archive: ParquetArchive, group: int, column: str) -> Any:
    return archive.read_column(group, column)


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
    return _Entry(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC, refused)


def _found(entries: Mapping[str, _Entry], member: str, path: str) -> _Entry:
    entry = entries.get(member) or entries.get(f"./{member}")
    if entry is None:
        example = f", for example {next(iter(entries))}" if entries else ""
        raise MediaError(f"{path}: {member}: is not in this archive, which holds {len(entries):,} files{example}")
    if entry.refused:
        raise MediaError(f"{path}: {member}: {entry.refused}")
    return entry


def _stored(file: _File, name: str, begin: int, entry: _Entry) -> BinaryIO:
    if entry.stored > _WHOLE_BYTES:
        return io.BufferedReader(_Window(file, begin, entry.stored), 1 << 16)
    return _checked(name, file.read_at(begin, entry.stored), entry)


def _checked(name: str, content: bytes, entry: _Entry) -> BinaryIO:
    if len(content) != entry.size:
        raise MediaError(f"{name}: the archive is broken: {entry.size:,} bytes were announced, not {len(content):,}")
    if entry.crc is not None and zlib.crc32(content) != entry.crc:
        raise MediaError(f"{name}: the archive is broken: the checksum does not match")
    return io.BytesIO(content)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
