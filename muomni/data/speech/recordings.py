"""Makes a manifest of a folder of recordings with their texts.

Two layouts are known: LJSpeech's, `metadata.csv` with `NAME|TEXT` or `NAME|TEXT|TEXT IN WORDS` and the sounds in
`wavs/` or beside it; and each sound with a text file of its name, `a.wav` and `a.txt`, in any folders.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muomni.config.base import LANGUAGE_PATTERN
from muomni.data.media.audio import load_audio
from muomni.data.speech.manifest import SILENT, SOUND_SUFFIXES
from muomni.data.speech.normalizer import missing_numbers
from muomni.data.speech.sentences import spoken_form
from muomni.errors import DataError, MediaError
from muomni.files import atomic_file, exists, json_line, text_lines
from muomni.ops.audio_frames import SAMPLE_RATE

METADATA = "metadata.csv"
# Letters a second of read speech; beyond these the text is not that of the sound. (LJSpeech: 10 to 18.)
_PACE = (3.0, 30.0)


@dataclass(frozen=True)
class RecordingsFound:
    """Rows written, their seconds, and of what was left out name and reason."""

    clips: int
    seconds: float
    left_out: list[tuple[str, str]]


def write_recordings(
    folder: Path,
    manifest: Path,
    *,
    speaker: str | None = None,
    language: str = "en",
    max_seconds: float = 30.0,
    report: Callable[[], None] = lambda: None,
) -> RecordingsFound:
    """Reads a folder of recordings and writes a manifest with `text`, `audio`, `speaker`, `language`, `duration`.

    Left out, with the reason: a sound without text and a text without sound, broken, empty and silent ones, those
    longer than `max_seconds`, texts that are not UTF-8 or without a reading in words, and pairs whose text is too long
    or short for the sound.

    Args:
        folder: of the recordings.
        manifest: where the manifest is written.
        speaker: who speaks; by default a sound's own folder below `folder` names its speaker, else `folder` does.
        language: of the texts, a tag such as "en" or "de".
        max_seconds: of a recording.
        report: called after each recording.

    Raises:
        DataError: the folder or its metadata is missing or unreadable, no pair is usable, or the manifest cannot be
            written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not re.match(LANGUAGE_PATTERN, language):
        raise DataError(f'language = {language!r}: must be a tag such as "en" or "de"')
    rows: list[Mapping[str, Any]] = []
    left_out: list[tuple[str, str]] = []
    for sound, text in _pairs(folder):
        report()
        name = sound.relative_to(folder).as_posix()
        try:
            spoken, seconds = _checked(sound, text, language, max_seconds)
        except (DataError, MediaError) as error:
            left_out.append((name, str(error).removeprefix(f"{sound}: ")))
            continue
        named_by = sound.parent if sound.parent not in (folder, folder / "wavs") else folder.resolve()
        audio = Path(os.path.relpath(sound, manifest.parent)).as_posix()
        row = {"audio": audio, "text": spoken, "speaker": speaker or _plain(named_by.name), "language": language}
        rows.append(row | {"duration": round(seconds, 3)})
    if not rows:
        first = f"; the first: {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DataError(f"{folder}: none of {len(left_out)} recordings can be used{first}")
    try:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(manifest) as partial:
            partial.write_bytes(b"".join(map(json_line, rows)))
    except OSError as error:
        raise DataError(f"{manifest}: cannot be written: {error.strerror or error}") from None
    return RecordingsFound(len(rows), sum(row["duration"] for row in rows), left_out)


def _plain(name: str) -> str:
    """A name of a folder that is not UTF-8 with question marks."""
    return name.encode("utf-8", "replace").decode()


def _checked(sound: Path, text: Path | str | None, language: str, max_seconds: float) -> tuple[str, float]:
    """The text as it is spoken, and the length.

    Args:
        sound: its file.
        text: or the file that holds it; None where there is none.
        language: of the text.
        max_seconds: of a recording.

    Raises:
        DataError, MediaError: what is wrong with the pair.
    """
    if not exists(sound):
        raise DataError("there is a text but no sound")
    if text is None:
        raise DataError(f"has no text: neither a line in {METADATA} nor a file {sound.with_suffix('.txt').name}")
    text = _text(text) if isinstance(text, Path) else text
    spoken = spoken_form(" ".join(text.split()), language)
    if spoken is None:
        missing = missing_numbers(language) if any(c.isdigit() for c in text) else None
        raise DataError(missing or f"its text has no clear reading in words: {text.strip()[:60]!r}")
    samples = load_audio(sound, max_seconds)
    if float(np.abs(samples).max()) < SILENT:
        raise DataError("is silent")
    seconds = len(samples) / SAMPLE_RATE
    pace = sum(c.isalpha() for c in spoken) / seconds
    slowest, fastest = _PACE
    if not slowest <= pace <= fastest:
        raise DataError(f"text and sound do not match: {pace:.1f} letters a second, {slowest:g} to {fastest:g} allowed")
    return spoken, seconds


def _pairs(folder: Path) -> Iterator[tuple[Path, Path | str | None]]:
    """Each sound and its text, or the file of it, sorted by name; a sound that a text names may be missing."""
    metadata = folder / METADATA
    texts = _metadata(metadata) if metadata.exists() else {}
    sounds: dict[Path, Path | str | None] = {}
    for name, text in texts.items():
        places = [folder / "wavs" / name, folder / name]
        options = [place.with_name(place.name + end) for place in places for end in ("", *SOUND_SUFFIXES)]
        sounds[next((path for path in options if exists(path)), folder / f"{name}.wav")] = text
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() not in SOUND_SUFFIXES or name.startswith(".") or path in sounds:
                continue
            beside = path.with_suffix(".txt")
            sounds[path] = beside if beside.is_file() else None
    if not sounds:
        raise DataError(f"{folder}: holds no recordings ({', '.join(SOUND_SUFFIXES)})")
    yield from sorted(sounds.items())


def _metadata(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in enumerate(text_lines(_text(path)), 1):
        # A quote in such files is a quote of the text; there are no quoted fields.
        name, *columns = line.split("|")
        if not line.strip():
            continue
        if not columns or not name.strip():
            raise DataError(f"{path}: line {number}: must be NAME|TEXT or NAME|TEXT|TEXT IN WORDS, not {line[:60]!r}")
        if name in texts:
            raise DataError(f"{path}: line {number}: {name!r} is named twice")
        texts[name.strip()] = columns[1] if len(columns) > 1 and columns[1].strip() else columns[0]
    return texts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
