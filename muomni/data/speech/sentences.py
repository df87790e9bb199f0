"""Sentences for speech: cut from texts, put into words that can be said, drawn without repeats.

Two sentences are the same when their words are, whatever their case, accents and punctuation: that is their
wording. The draw takes the sentences whose wordings have the smallest hashes, which is a uniform draw without
repeats in one pass, in the memory of what is drawn, and the same whatever the order of the files.
"""

import heapq
import math
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

from muomni.config.recipe_data import source_of
from muomni.data.sources.sources import read_documents
from muomni.data.speech.normalizer import SENTENCE_MARKS, TYPOGRAPHY, interjections, is_sentence_end, normalize
from muomni.data.text.chat import text_of
from muomni.errors import DataError

_END = re.compile(rf"(?:[.!?]+|[{SENTENCE_MARKS}])[\"')\]]*(?=\s+|$)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SPOKEN = frozenset(" ',.!?;:\"()-" + SENTENCE_MARKS)
# What a sentence to train with may hold besides: signs with one clear reading.
_READABLE = _SPOKEN | frozenset("$€£¥%°&+\N{MINUS SIGN}\N{EN DASH}/")
# Addresses, dates with slashes, telephone numbers and versions: people say them in more than one way.
_UNCLEAR = re.compile(r"[^\W_]\.[^\W\d_]{2}|\d[-/.]\d+[-/.]\d|\d-\d{4}|\bwww\.|:/")


def cut_sentences(text: str, language: str = "en") -> Iterator[str]:
    """The sentences of a text, in order, as they stand there; a line break ends a sentence that an empty line follows.

    A sentence ends at `.`, `!` or `?` with closing quotes behind it before a space; not at abbreviations
    (`Mr. Fox`), initials (`J. Smith`) and where a small letter follows (`"Stop!" he said`).
    """
    for paragraph in re.split(r"\n\s*\n|\n(?=[\"A-Z])", text.translate(TYPOGRAPHY)):
        begin = 0
        for match in _END.finditer(paragraph):
            if not is_sentence_end(paragraph[begin : match.start()], match[0], paragraph[match.end() :], language):
                continue
            if sentence := " ".join(paragraph[begin : match.end()].split()):
                yield sentence
            begin = match.end()
        if rest := " ".join(paragraph[begin:].split()):
            yield rest


def spoken_form(sentence: str, language: str = "en") -> str | None:
    """The sentence as `normalize` says it, with a capital and a full stop, if it has one clear reading.

    Quotes that open and never close, as in the middle of a long speech, are left out; others stay, since a model's
    answers have them too.

    Args:
        sentence: as written.
        language: where its numbers have no words (`normalizer.reads_numbers`), a sentence with digits gives None.

    Returns:
        None for what has no clear reading: addresses, code, emoji, tables, leftover digits, no word at all.
    """
    text = " ".join(sentence.translate(TYPOGRAPHY).split())
    if _UNCLEAR.search(text) or any(not c.isalnum() and c not in _READABLE and not _is_accent(c) for c in text):
        return None
    text = normalize(text, language)
    if text.count('"') % 2:
        text = text.replace('"', "")
    text = re.sub(r"\.{2,}", "...", re.sub(r"([!?])[!?]+", r"\1", text))
    text = " ".join(text.replace("...", ", ").replace(" ,", ",").split()).strip(" -,;:")
    if not _is_sayable(text, language):
        return None
    text = text[0].upper() + text[1:]
    if re.search(r'[.!?]"\.$', text):
        return text[:-1]
    if text[-1] in SENTENCE_MARKS + '"':
        return text
    closed = f"{text}."  # which may be an abbreviation: "Prof."
    return closed if normalize(closed, language) == closed else spoken_form(closed, language)


def _is_sayable(text: str, language: str) -> bool:
    """Whether a normalised text is words and marks alone, in English of Latin letters."""
    if not _WORD.search(text) or any(not c.isalpha() and c not in _SPOKEN and not _is_accent(c) for c in text):
        return False
    if re.search(r"\w\.\w|[^\W\d_]{24,}", text):  # an address, or what no dictionary has
        return False
    plain = unicodedata.normalize("NFKD", text) if language.split("-", maxsplit=1)[0] == "en" else ""
    return not any(c.isalpha() and not c.isascii() for c in plain)


def _is_accent(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def wording(sentence: str) -> str:
    """What decides whether two sentences are the same: the words without case, accents and punctuation."""
    plain = unicodedata.normalize("NFKD", sentence.translate(TYPOGRAPHY).replace("&", " and ").casefold())
    return " ".join(_WORD.findall("".join(c for c in plain if not unicodedata.combining(c))))


@dataclass(frozen=True)
class SentenceLimits:
    """Which sentences are taken, by the number of their words."""

    min_words: int = 1
    max_words: int = 15

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise DataError(
                f"sentences of {self.min_words} to {self.max_words} words: the first must be at least 1 and at most "
                "the second"
            )


def sentences_of(paths: Sequence[Path], language: str = "en") -> Iterator[str]:
    """All sentences of text files, JSON lines and Parquet (also .gz, also folders of them) that can be spoken.

    Of a conversation the assistant's messages are taken: what is to be spoken.

    Raises:
        DataError: a file is missing, empty or unreadable.
    """
    for document in chain.from_iterable(read_documents(source_of(path)) for path in paths):
        texts = [document.text] if document.text is not None else []
        texts += [text_of(message) for message in document.messages or () if message["role"] == "assistant"]
        for text in texts:
            for sentence in cut_sentences(text, language):
                if (spoken := spoken_form(sentence, language)) is not None:
                    yield spoken


def draw_sentences(
    sentences: Iterable[str],
    count: int | None,
    *,
    seed: int = 0,
    limits: SentenceLimits | None = None,
    excluded: Container[str] = frozenset(),
    report: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Draws `count` sentences (None: all) of different wording, in random order.

    Args:
        sentences: to draw from.
        count: None for all.
        seed: of the draw.
        limits: of the words of a sentence.
        excluded: wordings (see `wording`) that may not be drawn.
        report: called with the number of sentences seen, now and then.

    Returns:
        At most `count`; fewer where there are not so many. Drawn with a larger count they begin with the same.
    """
    limits = limits or SentenceLimits()
    kept: list[tuple[int, str]] = []  # a heap of (−hash, sentence): the one to go next is on top
    taken: set[int] = set()
    for number, sentence in enumerate(sentences, 1):
        if number % 10_000 == 0:
            report(number)
        words = wording(sentence)
        if not limits.min_words <= len(words.split()) <= limits.max_words or words in excluded:
            continue
        rank = _rank(words, seed)
        if rank in taken or (count is not None and len(kept) >= count and (not kept or rank > -kept[0][0])):
            continue
        taken.add(rank)
        heapq.heappush(kept, (-rank, sentence))
        if count is not None and len(kept) > count:
            taken.remove(-heapq.heappop(kept)[0])
    return [sentence for _, sentence in sorted(kept, reverse=True)]


def _rank(words: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}\n{words}".encode(), digest_size=8).digest())


def with_short(
    drawn: Sequence[str],
    share: float,
    language: str = "en",
    *,
    grow: bool = False,
    seed: int = 0,
    limits: SentenceLimits | None = None,
    excluded: Container[str] = frozenset(),
) -> list[str]:
    """Sentences of which at least a share has one or two words.

    Texts hold few of these, and a voice that never heard them stumbles there. What is missing are digits and
    interjections, half of it at most, and words and pairs of words out of the sentences.

    Args:
        drawn: as `draw_sentences` gives them.
        share: below 1.
        language: of the sentences.
        grow: whether short ones are added; else they take the place of long ones.
        seed: of the choice.
        limits: of the words of a sentence.
        excluded: wordings that may not be taken.

    Returns:
        In random order; fewer short ones where there are not so many.
    """
    limits = limits or SentenceLimits()
    long = [sentence for sentence in drawn if len(wording(sentence).split()) > 2]
    total = max(len(drawn), math.ceil(len(long) / (1 - share))) if grow else len(drawn)
    missing = math.ceil(share * total) - (len(drawn) - len(long))
    common = [spoken_form(str(digit), language) or "" for digit in range(10)] + list(interjections(language))
    pieces: list[str] = []
    for sentence in long:
        words = [word for part in sentence.split() if (word := part.strip(" ',.!?;:\"()-"))]
        for size in (1, 2):
            place = _rank(wording(sentence), seed + size) % (len(words) - size + 1)
            pieces.append(" ".join(words[place : place + size]))
    taken = {wording(sentence) for sentence in drawn}

    def fresh(candidates: Iterable[str]) -> Iterator[str]:
        for candidate in sorted(candidates, key=lambda text: _rank(wording(text), seed)):
            words = wording(candidate)
            fits = limits.min_words <= len(words.split()) <= min(limits.max_words, 2)
            spoken = spoken_form(candidate, language) if fits and words not in taken and words not in excluded else None
            if spoken is not None:
                taken.add(words)
                yield spoken

    added = list(islice(fresh(common), max(0, missing + 1) // 2))
    added += islice(fresh(pieces), max(0, missing - len(added)))
    added += islice(fresh(common), max(0, missing - len(added)))
    dropped = set(long[len(long) - max(0, len(drawn) + len(added) - total) :])
    return sorted(
        [*(sentence for sentence in drawn if sentence not in dropped), *added],
        key=lambda sentence: _rank(wording(sentence), seed),
    )
