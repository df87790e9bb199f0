"""Made items as files: a manifest and an archive of its media, as any other data."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muomni.config import SyntheticSpec
from muomni.data.synthetic.item import Item
from muomni.data.synthetic.world import open_world
from muomni.errors import DataError
from muomni.files import atomic_file, json_line, remove_partial

ITEMS, MEDIA = "items.jsonl", "media.zip"
_SUFFIXES = {"image": "png", "audio": "flac"}


def write_items(spec: SyntheticSpec, out: Path, report: Callable[[int], None] = lambda _: None) -> Path:
    """Writes items to `items.jsonl` in a folder, and their pictures and sounds to `media.zip` beside it.

    Each line has `messages`, as training reads them, and `skill`, `answer`, `choices` and `also` (see `Item`).

    Args:
        spec: which items.
        out: made where it is missing; what a call left that was interrupted is made anew.
        report: called with the number of items done since the last call.

    Returns:
        The manifest.

    Raises:
        DataError: the folder holds something, or cannot be written.
        UserError: a synthesiser is needed and not installed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out)
        if strangers := sorted(path.name for path in out.iterdir() if path.name != MEDIA or (out / ITEMS).exists()):
            raise DataError(f"{out}: is not empty (it holds {strangers[0]}); give a new folder")
        with (
            open_world(spec) as world,
            atomic_file(out / MEDIA) as media,
            zipfile.ZipFile(media, "w") as archive,
            atomic_file(out / ITEMS) as items,
            items.open("wb") as lines,
        ):
            for number in range(spec.count):
                lines.write(json_line(_row(world.item(number), number, archive)))
                report(1)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from None
    return out / ITEMS


def _row(item: Item, number: int, archive: zipfile.ZipFile) -> dict[str, Any]:
    """A line of the manifest; the media go into the archive."""
    messages: list[dict[str, Any]] = item.messages
    if not isinstance(item.question, str):
        parts = []
        for part in item.question:
            kind = part["type"]
            if kind in _SUFFIXES:
                name = f"{number:07d}.{_SUFFIXES[kind]}"
                # No time of day in the archive: the same items are the same file.
                archive.writestr(zipfile.ZipInfo(name), part[kind])
                part = {**part, kind: name, "archive": MEDIA}
            parts.append(part)
        messages = [{"role": "user", "content": parts}, messages[1]]
    details = {"skill": item.skill, "answer": item.answer, "choices": item.choices, "also": item.also}
    return {"messages": messages, **details}
