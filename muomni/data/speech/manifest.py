"""Manifests of recordings: JSON lines that name sounds, and what is said in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muomni.config import SourceSpec
from muomni.data.media.media_ref import MediaRef
from muomni.errors import DataError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def recordings_path(source: SourceSpec) -> Path:
    """The manifest, sound or folder of a source.

    Raises:
        DataError: it is missing, or of another format.
    """
    path = Path(source.path).expanduser()
    if source.format not in ("auto", "jsonl"):
        raise DataError(f'{source.path}: format "{source.format}": speech is read from sounds or .jsonl manifests')
    if not path.exists():
        raise DataError(f"{source.path}: no such file or folder")
    return path


def read_manifest(path: Path, *columns: str) -> Iterator[tuple[MediaRef, dict[str, Any]]]:
    """The sound that each line names, in `audio` and perhaps `archive`, and the whole row.

    Args:
        path: of the manifest.
        columns: what a row must hold besides, as texts.

    Raises:
        DataError: the file cannot be read, or a line is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            audio, archive = row["audio"], row.get("archive")
            texts = [audio, archive or "", *(row[name] for name in columns)]
        except (ValueError, KeyError, TypeError, AttributeError):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            more = "".join(f', the text "{name}"' for name in columns)
            raise DataError(
                f'{path}: line {number}: must be a JSON object with the names of a sound, "audio", and of what holds '
                f'it, "archive", where one does{more}'
            )
        place = str(path.parent / (archive or audio))
        yield MediaRef("audio", place, audio if archive else None), row
