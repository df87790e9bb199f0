"""Manifests of recordings: JSON lines that name sounds, and what is said in them."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muomni.config import SourceSpec
from muomni.config.base import LANGUAGE_PATTERN
from muomni.data.cache_folder import file_stamp
from muomni.data.media.media_ref import MediaRef
from muomni.errors import DataError
from muomni.files import exists, text_lines, user_path

MANIFEST = "manifest.jsonl"
# What a folder of sounds may hold; the last ones are not read, so that whoever has them is told.
SOUND_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"),
    *(".m4a", ".aac", ".wma", ".amr"),
)
# In a recording whose loudest sample is below this nobody speaks.
SILENT = 1e-4


def recordings_path(source: SourceSpec) -> Path:
    """The manifest, sound or folder of a source.

    Raises:
        DataError: it is missing, or of another format.
    """
    path = user_path(source.path)
    if source.format not in ("auto", "jsonl"):
        raise DataError(f'{source.path}: format "{source.format}": speech is read from sounds or .jsonl manifests')
    if not exists(path):
        raise DataError(f"{source.path}: no such file or folder")
    return path


def find_manifests(path: Path) -> list[Path]:
    """The path itself if it is a file; of a folder its `manifest.jsonl`, else all manifests below it."""
    if path.is_file():
        return [path]
    if (path / MANIFEST).is_file():
        return [path / MANIFEST]
    return sorted(file for file in path.rglob("*.jsonl") if not file.name.startswith("."))


def read_manifest(path: Path, *columns: str) -> Iterator[tuple[MediaRef, dict[str, Any]]]:
    """The sound that each line names, in `audio` and perhaps `archive`, and the whole row.

    Args:
        path: of the manifest.
        columns: what a row must hold besides, as texts.

    Raises:
        DataError: the file cannot be read, or a line is not of this form.
    """
    try:
        lines = text_lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        problem = ""
        try:
            row = json.loads(line)
            audio, archive, language = row["audio"], row.get("archive"), row.get("language", "en")
            texts = [audio, archive or "", language, *(row[name] for name in columns)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            texts = [None]
            problem = f"not valid JSON: {error}; it " if isinstance(error, ValueError) else ""
        if not all(isinstance(text, str) for text in texts):
            more = "".join(f', the text "{name}"' for name in columns)
            raise DataError(
                f'{path}: line {number}: {problem}must be a JSON object with the names of a sound, "audio", and of '
                f'what holds it, "archive", where one does{more}'
            )
        if not re.match(LANGUAGE_PATTERN, language):
            raise DataError(f'{path}: line {number}: "language" = {language!r}: must be a tag such as "en" or "de"')
        place = str(path.parent / (archive or audio))
        yield MediaRef("audio", place, audio if archive else None), row


def describe_files(refs: Iterable[MediaRef]) -> list[Any]:
    """Path, size and time of change of the files that hold some sounds: what a cache of them depends on."""
    return [[os.path.abspath(path), file_stamp(path)] for path in dict.fromkeys(ref.path for ref in refs)]


def check_unreadable(reasons: Sequence[str], total: int, max_fraction: float) -> None:
    """Refuses data of which too many recordings cannot be read.

    Args:
        reasons: why each of them cannot.
        total: of all recordings.
        max_fraction: the share that is allowed.

    Raises:
        DataError: there are more, or nothing is left.
    """
    if len(reasons) > max_fraction * total or len(reasons) == total:
        raise DataError(
            f"{len(reasons)} of {total} recordings cannot be read, more than data.max_unreadable_fraction "
            f"({max_fraction:g}) allows; for example {'; '.join(reasons[:3])}"
        )
