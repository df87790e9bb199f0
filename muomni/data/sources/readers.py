"""Readers of one file each: plain text, JSON lines, Parquet, and the `datasets` library.

Every reader streams: what it holds does not grow with the file. Errors name the file and the line,
row or byte.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from muomni.config import SourceSpec
from muomni.data.media.parsing import reason_of
from muomni.data.sources.templates import columns_of, conversation_of
from muomni.data.text.chat import Message, check_messages, is_learnt, text_of
from muomni.errors import DataError

READ_BYTES = 1 << 20
# Texts are handed on in pieces of at most this many characters.
PIECE_CHARS = 1 << 20
# Pieces of plain text without separators: small, so that validation can take a few from anywhere.
BLOCK_CHARS = 4096
# A JSON line is parsed whole, so there has to be a limit.
MAX_LINE_BYTES = 256 << 20

Report = Callable[[int], None]
Keep = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or a piece of a long one.

    Attributes:
        text: plain text; None for a conversation.
        messages: a conversation, checked; None for plain text.
        origin: file and line, row or byte, for messages to the user.
        final: False where the next Document goes on with the same text.
        divisible: its pieces may be shared out between training and validation, since it is not one
            document by anyone's word but a whole file of plain text.
    """

    text: str | None
    messages: list[Message] | None
    origin: str
    final: bool = True
    divisible: bool = False


def read_text_file(path: Path, spec: SourceSpec, report: Report, keep: Keep) -> Iterator[Document]:
    """Plain UTF-8 text: documents between separators, or the whole file as one divisible document.

    A byte order mark is skipped and CRLF read as a newline. With a separator, newlines around a
    document are not part of it.

    Args:
        path: of the file.
        spec: of its source.
        report: called with the number of bytes read from disk, as reading goes on.
        keep: says for the n-th document (without a separator: piece) whether it is wanted.
    """
    if spec.separator is None:
        divisible, limit, separator = True, BLOCK_CHARS, ""
    else:
        divisible, limit, separator = False, PIECE_CHARS, spec.separator.replace("\r\n", "\n")
    buffer = ""
    number = 0
    first = True  # of its document
    for origin, chunk in _decoded(path, report):
        buffer += chunk
        if separator:
            *whole, buffer = buffer.split(separator)
            for text in whole:
                text = (text.lstrip("\n") if first else text).rstrip("\n")
                if keep(number):
                    yield from _pieces(text, f"{origin}: document {number + 1}", not first, limit)
                number, first = number + 1, True
        done, end = 0, len(buffer)
        if separator:
            # The last characters may be the beginning of a separator, newlines before it no part of the document.
            end = len(buffer[: -len(separator)].rstrip("\n"))
        while end - done > 2 * limit:
            cut = done + _cut(buffer[done : done + limit])
            piece = buffer[done:cut]
            piece = piece.lstrip("\n") if first and separator else piece
            if piece and keep(number):
                yield Document(piece, None, origin, final=False, divisible=divisible)
            number += divisible
            first = first and not piece
            done = cut
        buffer = buffer[done:]
    if keep(number):
        if separator:
            buffer = (buffer.lstrip("\n") if first else buffer).rstrip("\n")
        yield from _pieces(buffer, str(path), continues=not first, limit=2 * limit, divisible=divisible)


def read_jsonl_file(path: Path, spec: SourceSpec, report: Report, keep: Keep) -> Iterator[Document]:
    """JSON lines: an object a line, with a text or a conversation in the named field; blank lines are skipped."""
    for origin, row in jsonl_rows(path, report, keep, spec.text_column):
        if isinstance(row, DataError):
            raise row
        yield from row_documents(row, spec, origin, path.parent)


def jsonl_rows(
    path: Path,
    report: Report = lambda _: None,
    keep: Keep = lambda _: True,
    text_column: str = "text",
) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """The name of each line, and its object or what is wrong with it.

    Args:
        path: of the file.
        report: see `read_text_file`.
        keep: see `read_text_file`.
        text_column: shown in the error for what is no object.

    Raises:
        DataError: the file cannot be read, or a line is too long to be parsed.
    """
    with open_lines(path, report) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{path}: line {number}: is longer than {MAX_LINE_BYTES >> 20} MB; split it up")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if keep(number - 1) and line.strip():
                origin = f"{path}: line {number}"
                yield origin, _parsed(line, origin, text_column)


def _parsed(line: bytes, origin: str, text_column: str) -> dict[str, Any] | DataError:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_text(origin, line, error.start)
    except (ValueError, RecursionError) as error:
        return DataError(f"{origin}: not valid JSON: {error}{_hint(line)}")
    if isinstance(row, dict):
        return row
    example = f"{{{json.dumps(text_column)}: ...}}"
    return DataError(f"{origin}: must be a JSON object such as {example}, not {_json_kind(row)}{_hint(line)}")


def read_parquet_file(path: Path, spec: SourceSpec, report: Report, keep: Keep) -> Iterator[Document]:
    """Parquet; only the named columns are read."""

    def columns(names: list[str]) -> list[str]:
        if wanted := _template_columns(spec):
            return [name for name in wanted if name in names]
        chosen = [name for name in (spec.text_column, spec.messages_field) if name in names]
        if not chosen:
            raise _no_field(str(path), spec, names, "columns")
        media = _MEDIA_COLUMNS if spec.messages_field in chosen else ()
        return chosen + [name for name in media if name in names and name not in chosen]

    for number, (origin, row) in enumerate(parquet_rows(path, columns, report)):
        if keep(number):
            yield from row_documents(row, spec, origin, path.parent)


def parquet_rows(
    path: Path,
    columns: Callable[[list[str]], list[str] | None] = lambda _: None,
    report: Report = lambda _: None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the values of each row of a Parquet file, of which a few are in memory.

    Args:
        path: of the file.
        columns: chooses among the names of all; None takes them all.
        report: see `read_text_file`.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            share = path.stat().st_size / max(1, file.metadata.num_rows)
            # Pictures and sounds can make a row large.
            rows, number = 256 if share < 1 << 16 else 16, 0
            chosen = columns(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=rows, columns=chosen, use_threads=False):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
                report(round(share * len(batch)))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of a broken file pyarrow raises many kinds
        raise DataError(f"{path}: cannot be read as Parquet: {reason_of(error)}") from error


def read_dataset(spec: SourceSpec, keep: Keep) -> Iterator[Document]:
    """A data set of the `datasets` library: a saved folder, a name on the Hub, or what `load_dataset` takes."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f'{spec.path}: format "datasets" needs the datasets library: pip install "muomni[datasets]"'
        ) from None
    where = f"{spec.path} (split {spec.split})"
    try:
        if is_saved_dataset(Path(spec.path)):
            rows: Any = datasets.load_from_disk(spec.path)
            if isinstance(rows, datasets.DatasetDict):
                if spec.split not in rows:
                    raise DataError(f"{spec.path}: has no split {spec.split!r}; its splits are {', '.join(rows)}")
                rows = rows[spec.split]
        else:
            rows = datasets.load_dataset(spec.path, spec.subset, split=spec.split, streaming=True)
        names = rows.column_names
        if names is not None:
            wanted = _template_columns(spec) or (spec.text_column, spec.messages_field)
            columns = [name for name in wanted if name in names]
            if not columns:
                raise _no_field(where, spec, names, "columns")
            rows = rows.select_columns(columns)
        for number, row in enumerate(rows):
            if keep(number):
                yield from row_documents(row, spec, f"{where}: row {number}")
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the datasets library cannot read it: {error}") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the `datasets` library wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def row_documents(
    row: Mapping[str, Any], spec: SourceSpec, origin: str, root: Path | None = None
) -> Iterator[Document]:
    """The document in a row: its conversation if it has one, else its text, long ones in pieces.

    Args:
        row: with a column for each field.
        spec: of its source.
        origin: names the row in errors.
        root: what paths of pictures and sounds are relative to.
    """
    if spec.answer is not None or row.get(spec.messages_field) is not None:
        if spec.answer is not None:
            given: Any = conversation_of(row, spec.question, spec.answer, origin)
        else:
            given = _with_columns(row[spec.messages_field], row, origin)
        messages = check_messages(given, origin, DataError, inputs=("image", "audio"), root=root)
        if not any(is_learnt(message) for message in messages):
            raise DataError(
                f"{origin}: the conversation holds no answer of the assistant that is learnt, so it teaches nothing"
            )
        for message in messages:
            _refuse_surrogates(text_of(message), origin)
        yield Document(None, messages, origin)
        return
    if spec.text_column not in row:
        raise _no_field(origin, spec, list(row), "fields")
    text = row[spec.text_column]
    if not isinstance(text, str):
        raise DataError(f"{origin}: field {spec.text_column!r} must be a string, not {_json_kind(text)}")
    _refuse_surrogates(text, origin)
    yield from _pieces(text, origin, continues=False, limit=PIECE_CHARS)


def _template_columns(spec: SourceSpec) -> list[str]:
    return [] if spec.answer is None else columns_of([*spec.question, spec.answer])


# Beside a conversation whose parts name only their type, where the media are, as Hugging Face's data sets have it.
_MEDIA_COLUMNS = {"image": "image", "images": "image", "audio": "audio", "audios": "audio"}


def _with_columns(messages: Any, row: Mapping[str, Any], origin: str) -> Any:
    """The conversation; parts without a source take the next one from the row's media columns.

    Keys without a value are dropped, since a Parquet file gives every part the keys of all.
    """
    waiting: dict[str, list[Any]] = {"image": [], "audio": []}
    for column, kind in _MEDIA_COLUMNS.items():
        values = row.get(column)
        waiting[kind] += values if isinstance(values, list) else [] if values is None else [values]

    def filled(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        part = {key: value for key, value in part.items() if value is not None}
        kind = part.get("type")
        if isinstance(kind, str) and kind in waiting and set(part) <= {"type", "text", "caption", "transcript"}:
            if not waiting[kind]:
                raise DataError(f"{origin}: a part is {kind}, but names none, and the row's columns hold no more")
            part = {**part, kind: waiting[kind].pop(0)}
        return part

    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": [filled(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _pieces(text: str, origin: str, continues: bool, limit: int, divisible: bool = False) -> Iterator[Document]:
    """A text in pieces of at most `limit` characters.

    Args:
        text: all of it.
        origin: see `Document`.
        continues: it goes on an earlier Document, so even an empty rest is needed, to end that one.
        limit: of a piece.
        divisible: see `Document`.
    """
    if not continues and not text.strip():
        return
    start = 0
    while len(text) - start > limit:
        end = start + _cut(text[start : start + limit])
        yield Document(text[start:end], None, origin, final=False, divisible=divisible)
        start = end
    yield Document(text[start:], None, origin, divisible=divisible)


def _cut(text: str) -> int:
    """Where to cut at most this much text: behind a blank line, else a newline, else before a space."""
    half = len(text) // 2
    for mark, offset in (("\n\n", 2), ("\n", 1), (" ", 0)):
        place = text.rfind(mark, half)
        if place > 0:
            return place + offset
    return len(text)


def _decoded(path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """The file's text in chunks, each with the file and byte where it begins; newlines become line feeds."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    position = 0  # of the first byte that is not yet decoded
    with open_lines(path, report) as file:
        while True:
            chunk = file.read(READ_BYTES)
            origin = f"{path}: byte {position}"
            try:
                text = decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                offset = position + len(chunk) - len(error.object)
                raise _not_text(str(path), error.object, error.start, offset) from None
            if "\0" in text:
                raise DataError(f"{path}: is not a text file: it holds NUL bytes, the first near byte {position}")
            position += len(chunk)
            yield origin, newlines.decode(text, final=not chunk)
            if not chunk:
                return


@contextmanager
def open_lines(path: Path, report: Report) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked when it ends in `.gz`; what goes wrong while reading becomes a DataError."""
    try:
        with io.BufferedReader(_ReportingFile(path, report), READ_BYTES) as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    # Reading lines from GzipFile itself is slow.
                    yield io.BufferedReader(unpacked, READ_BYTES)
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


class _ReportingFile(io.FileIO):
    """A file that says how many bytes were read from it."""

    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path)
        self._report = report

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._report(count or 0)
        return count


def _not_text(origin: str, content: bytes, start: int, offset: int = 0) -> DataError:
    """The error for bytes that are not UTF-8; `offset` is that of `content` in the file."""
    kind = ""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and offset == 0:
        kind = "; it looks like UTF-16: convert it to UTF-8"
    elif content.startswith(b"\x1f\x8b") and offset == 0:
        kind = "; it looks like a gzip file: let its name end in .gz"
    return DataError(f"{origin}: is not UTF-8 text: byte {offset + start} is 0x{content[start]:02x}{kind}")


def _refuse_surrogates(text: str, origin: str) -> None:
    """JSON can write half of a surrogate pair, which no encoding can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise DataError(f"{origin}: holds half of a surrogate pair, \\u{code:04x}, which is no character") from None


def _no_field(origin: str, spec: SourceSpec, names: list[str], what: str) -> DataError:
    return DataError(
        f"{origin}: has neither {spec.text_column!r} nor {spec.messages_field!r}; its {what} are: "
        f"{', '.join(map(str, names)) or 'none'}. Name the right one with text_column or messages_field"
    )


def _hint(line: bytes) -> str:
    start = line.lstrip()[:1]
    if start == b"[":
        return " (a JSON array? Write one object a line instead)"
    if line.strip() == b"{":
        return " (an object over several lines? Write it on one line)"
    return ""


def _json_kind(value: object) -> str:
    names = {type(None): "null", bool: "true or false", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
