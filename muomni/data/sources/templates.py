"""Conversations from the columns of a data set that has none: a question and an answer with columns in braces."""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from muomni.data.text.content_parts import kind_of_value
from muomni.errors import DataError

_COLUMN = re.compile(r"\{(\w+)\}")


def columns_of(templates: Sequence[str]) -> list[str]:
    """The columns that templates name, each once."""
    return list(dict.fromkeys(name for template in templates for name in _COLUMN.findall(template)))


def conversation_of(row: Mapping[str, Any], questions: Sequence[str], answer: str, origin: str) -> list[dict[str, Any]]:
    """One question and its answer.

    Args:
        row: the columns.
        questions: wordings, of which the row's place chooses one; `{column}` is its picture, sound or text.
        answer: the same, of texts.
        origin: file and row.

    Raises:
        DataError: a column is missing, or the answer holds a picture or sound.
    """
    # By the place in the file, wherever that lies.
    wording = questions[zlib.crc32(origin.rpartition(": ")[2].encode()) % len(questions)]
    reply = _parts(row, answer, origin)
    if any(part["type"] != "text" for part in reply):
        raise DataError(f"{origin}: answer = {answer!r}: must be made of texts")
    text = "".join(part["text"] for part in reply)
    return [{"role": "user", "content": _parts(row, wording, origin)}, {"role": "assistant", "content": text}]


def _parts(row: Mapping[str, Any], template: str, origin: str) -> list[dict[str, Any]]:
    """Texts and media in their order."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(_COLUMN.split(template)):
        if number % 2 == 0:
            part = {"type": "text", "text": piece} if piece.strip() else None
        else:
            part = _value(row, piece, origin)
        if part is None:
            continue
        if part["type"] == "text" and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part["text"]
        else:
            parts.append(part)
    # Blanks beside a picture separate it from the text in the template only.
    for part in parts if len(parts) > 1 else ():
        if part["type"] == "text":
            part["text"] = part["text"].strip()
    return parts


def _value(row: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    if row.get(name) is None:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(f"{origin}: has no {name!r}, which question or answer name; its columns are: {there}")
    value = row[name]
    kind = kind_of_value(value)
    if kind in ("image", "audio"):
        return {"type": kind, kind: value}
    if isinstance(value, str | int | float):
        return {"type": "text", "text": str(value)}
    raise DataError(f"{origin}: column {name!r} is a {type(value).__name__}: must be a text, number, picture or sound")
