"""What a model knows of a language without being asked: pairs of sentences, endings of stories, bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muomni.data import Tokenizer
from muomni.errors import DataError
from muomni.eval.likelihood import likelihoods
from muomni.eval.shares import Share
from muomni.model import OmniModel

Report = Callable[[int], None]
# A long text is judged in pieces of this share of the context, each with as much of the text before it.
_PIECE = 0.5


def minimal_pairs(
    model: OmniModel, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], report: Report = lambda _: None
) -> dict[str, Share]:
    """How often the correct sentence is the likelier one (BLiMP, arXiv:1912.00582), in all and by field.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        rows: each with the sentences `good` and `bad`, and perhaps a `field`.
        report: called with the number of sentences done since the last call.

    Returns:
        Shares by field; "all" comes first.
    """
    pairs = [("", str(row[key])) for row in rows for key in ("good", "bad")]
    values = [one.nats for one in likelihoods(model, tokenizer, pairs, report=report)]
    right = [good > bad for good, bad in zip(values[::2], values[1::2], strict=True)]
    fields = sorted({str(row["field"]) for row in rows if "field" in row})
    by_field = {
        name: Share.of(ok for ok, row in zip(right, rows, strict=True) if row.get("field") == name) for name in fields
    }
    return {"all": Share.of(right), **by_field}


def endings(
    model: OmniModel, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], report: Report = lambda _: None
) -> Share:
    """How often the true ending of a story is the likeliest of its choices, per byte.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        rows: each with `context`, `choices` and the number of the true one as `answer`.
        report: called with the number of endings done since the last call.

    Raises:
        DataError: an `answer` is no number of a choice.
    """
    for row in rows:
        if not isinstance(row["answer"], int) or not 0 <= row["answer"] < len(row["choices"]):
            raise DataError(f"answer = {row['answer']!r}: there are {len(row['choices'])} choices")
    pairs = [(f"{row['context']} ", str(choice)) for row in rows for choice in row["choices"]]
    values = iter([one.per_byte for one in likelihoods(model, tokenizer, pairs, report=report)])
    right = []
    for row in rows:
        scores = [next(values) for _ in row["choices"]]
        right.append(max(range(len(scores)), key=scores.__getitem__) == row["answer"])
    return Share.of(right)


@dataclass(frozen=True)
class BitsPerByte:
    """How well texts are predicted.

    Attributes:
        bits: per byte of text, which compares across tokenizers.
        size: bytes that were predicted.
    """

    bits: float
    size: int


def bits_per_byte(
    model: OmniModel, tokenizer: Tokenizer, texts: Sequence[str], report: Report = lambda _: None
) -> BitsPerByte:
    """Of texts, each judged whole: a piece of a long one has what stands before it in the context.

    Raises:
        DataError: there is nothing to predict in them.
    """
    limit = int(model.config.thinker.max_position_embeddings * _PIECE)
    pairs = []
    for text in texts:
        pieces = _pieces(tokenizer, text, limit)
        pairs += [(pieces[n - 1] if n else "", piece) for n, piece in enumerate(pieces)]
    judged = likelihoods(model, tokenizer, pairs, report=report)
    size = sum(one.size for one in judged)
    if not size:
        raise DataError("the texts are too short: there is nothing to predict in them")
    return BitsPerByte(-sum(one.nats for one in judged) / size / math.log(2), size)


def _pieces(tokenizer: Tokenizer, text: str, limit: int) -> list[str]:
    """A text cut at spaces into pieces of at most about `limit` tokens."""
    tokens = len(tokenizer.encode(text))
    if tokens <= limit:
        return [text]
    count = math.ceil(tokens / (0.9 * limit))
    words = text.split(" ")
    step = math.ceil(len(words) / count)
    groups = [" ".join(words[first : first + step]) for first in range(0, len(words), step)]
    return [group if number == 0 else f" {group}" for number, group in enumerate(groups)]
