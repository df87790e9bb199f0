"""Streams of documents from the sources of a recipe."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from muomni.config import SourceSpec
from muomni.data.sources.readers import (
    Document,
    Keep,
    Report,
    is_saved_dataset,
    read_dataset,
    read_jsonl_file,
    read_parquet_file,
    read_text_file,
)
from muomni.errors import DataError
from muomni.files import exists, user_path

FileFormat = Literal["text", "jsonl", "parquet"]

_FORMATS: dict[str, FileFormat] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
_READERS = {"text": read_text_file, "jsonl": read_jsonl_file, "parquet": read_parquet_file}
# How much text a byte on disk holds, roughly; only the tokenizer's sample depends on it.
_EXPANSION = {".gz": 3.0, ".parquet": 2.0}


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `size` is in bytes on disk."""

    path: Path
    format: FileFormat
    size: int


def source_files(spec: SourceSpec) -> list[SourceFile] | None:
    """The files of a source, sorted by path; None for a data set of the `datasets` library.

    Raises:
        DataError: the path does not exist, its format is not known, or there is no file.
    """
    if spec.format == "datasets":
        return None
    path = user_path(spec.path)
    if not exists(path):
        like_a_name = spec.path.count("/") <= 1 and not spec.path.startswith(("/", ".", "~"))
        hint = (
            f'; if it names a data set of the Hugging Face Hub, write {{"path": "{spec.path}", "format": "datasets"}}'
        )
        raise DataError(f"{spec.path}: no such file or folder{hint if like_a_name else ''}")
    if path.is_dir():
        if spec.format == "auto" and is_saved_dataset(path):
            return None
        return _files_below(path, spec)
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    by_name = _format_of(path)
    form = by_name if spec.format == "auto" else spec.format
    if form is None:
        raise DataError(
            f'{path}: its format is not known from the name; give "format": "text", "jsonl" or "parquet" '
            f"(known by themselves: {', '.join(_FORMATS)}, also with .gz)"
        )
    return [SourceFile(path, form, path.stat().st_size)]


def _files_below(folder: Path, spec: SourceSpec) -> list[SourceFile]:
    """Files of a known format below `folder`; hidden ones and empty ones are left out."""
    files = []
    seen = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            form = _format_of(path)
            seen.add("".join(path.suffixes[-2:]) or name)
            wanted = form is not None and spec.format in ("auto", form)
            if form is not None and wanted and not name.startswith(".") and path.stat().st_size:
                files.append(SourceFile(path, form, path.stat().st_size))
    if not files:
        wanted_names = ", ".join(end for end, form in _FORMATS.items() if spec.format in ("auto", form))
        raise DataError(
            f"{folder}: holds no file that ends in {wanted_names} (also with .gz) and is not empty; "
            f"it holds: {', '.join(sorted(seen)[:10]) or 'nothing'}"
        )
    return sorted(files, key=lambda file: file.path.as_posix())


def _format_of(path: Path) -> FileFormat | None:
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    form = _FORMATS.get(name.suffix.lower())
    return None if form == "parquet" and name != path else form


def read_documents(
    spec: SourceSpec, report: Report = lambda _: None, keep: Keep = lambda _: True
) -> Iterator[Document]:
    """The documents of a source, file by file, in a fixed order.

    Args:
        spec: of the source.
        report: called with the number of bytes read since the last call.
        keep: says for the n-th row of each file (of plain text: piece) whether it is wanted; the others are passed
            over without being parsed.

    Raises:
        DataError: naming file and line, row or byte.
    """
    files = source_files(spec)
    if files is None:
        yield from read_dataset(spec, keep)
        return
    for file in files:
        yield from _READERS[file.format](file.path, spec, report, keep)


def text_size(spec: SourceSpec) -> float:
    """Bytes of text that the files of a source hold, roughly; 0 where they are not known."""
    return sum(file.size * _EXPANSION.get(file.path.suffix, 1.0) for file in source_files(spec) or ())
