"""Small inputs for the tests of the data package."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.cache_folder import open_or_build
from muomni.data.index.token_index import DOCUMENT, Counts, TokenIndex

STORIES = [
    "Once upon a time there was a small cat. It sat on the mat, and the dog slept beside it.\n",
    "The dog ate the bone. Then it ran 12345 times around the house; it was happy!\n\n",
    "Lily said, \"I don't know what's in the box.\" Her mother smiled and opened it.\n",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 23))\n",
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


def numbered_index(folder: Path, lengths: list[int], learnt: list[int] | None = None) -> TokenIndex:
    """An index whose i-th token has the id i, so that a row tells where its tokens come from."""
    total = sum(lengths)

    def write(partial: Path) -> dict[str, Any]:
        part = partial / "train"
        part.mkdir()
        np.arange(total, dtype=np.uint32).tofile(part / "tokens.bin")
        documents = np.zeros(len(lengths), DOCUMENT)
        documents["start"], documents["count"] = np.cumsum(lengths) - lengths, lengths
        documents.tofile(part / "documents.bin")
        if learnt is not None:
            np.array(learnt, dtype=np.uint8).tofile(part / "mask.bin")
        counts = Counts(total, total if learnt is None else sum(learnt), total)
        return {"dtype": "uint32", "eos_id": 0, "pad_id": total + 7, "parts": {"train": asdict(counts)}}

    open_or_build(folder, "f" * 32, write)
    return TokenIndex(folder / ("f" * 32) / "train")
