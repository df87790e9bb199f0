"""The layout of a media index on disk."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Goes up when the same input would give other bytes.
FORMAT = 1


IMAGE, AUDIO = 0, 1


# start, count: a document's tokens. medium, media: its media. length: tokens with all placeholders repeated.
# source: number of the recipe's source.
DOCUMENT = np.dtype(
    [("start", "<i8"), ("count", "<i8"), ("medium", "<i8"), ("media", "<i8"), ("length", "<i8"), ("source", "<i8")]
)


# place: of the placeholder among the document's tokens. frame: number in its video. rows, columns: the token
# grid of a picture. frames: of a sound, 100 a second. tokens: that the encoder gives. ref, size: in refs.bin.
MEDIUM = np.dtype(
    [
        ("kind", "<i4"),
        ("frame", "<i4"),
        ("rows", "<i4"),
        ("columns", "<i4"),
        ("frames", "<i4"),
        ("tokens", "<i4"),
        ("place", "<i8"),
        ("ref", "<i8"),
        ("size", "<i8"),
    ]
)


@dataclass(frozen=True)
class IndexMeta:
    """Counts of one part.

    Attributes:
        documents, media: how many.
        tokens: with one placeholder for each medium.
        length: tokens with all placeholders repeated.
        target_tokens, target_bytes: tokens that are learnt, and UTF-8 bytes of their text.
        refs, blobs: bytes of those files.
        bad: documents left out because of media whose header could not be read.
    """

    documents: int
    media: int
    tokens: int
    length: int
    target_tokens: int
    target_bytes: int
    refs: int
    blobs: int
    bad: int


def describe_archive(path: str) -> list[int]:
    """Size and time of change of an archive; [] where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns]


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The meta data of a whole index; None when there is none or any of its files has another size."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or meta["fingerprint"] != folder.name:
            return None
        width = np.dtype(meta["dtype"]).itemsize
        for name, values in meta["parts"].items():
            counts = IndexMeta(**values)
            sizes = {
                "tokens.bin": counts.tokens * width,
                "mask.bin": counts.tokens,
                "documents.bin": counts.documents * DOCUMENT.itemsize,
                "media.bin": counts.media * MEDIUM.itemsize,
                "refs.bin": counts.refs,
                "blobs.bin": counts.blobs,
            }
            if any((folder / name / file).stat().st_size != size for file, size in sizes.items()):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta
