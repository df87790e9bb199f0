"""The words that are spoken of a text, in sentences, while the text still streams in.

A word is all between two spaces of the source; it leaves once it is clear that another follows in its sentence, or
that none does. What it becomes depends on the characters alone, not on how they were cut into pieces. Numbers, titles
and signs are put into words as `sentences.spoken_form` does for training texts, marks of Markdown, code in fences and
emoji are left out, and what has no clear reading is spelled as well as it can be: a reply is never refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from muomni.data.speech.normalizer import (
    SENTENCE_MARKS,
    TYPOGRAPHY,
    belong_together,
    is_open,
    is_sentence_end,
    normalize_piece,
    plain_inline,
)
from muomni.data.text.tokenizer import Tokenizer

MAX_UNITS = 240
# Longer words are cut; so is what scripts without spaces write between two marks.
_LONGEST_WORD = 60
# What a sentence may still grow by when it ends: BEGIN, END, a full stop, a capital letter of more bytes.
_MARGIN = 5
# Behind a comma a sentence is cut from this share of the longest on.
_LONG = 2 / 3

_FENCE = "```"
_LINK = re.compile(r"\]\([^)\s]*\)?")
_BULLETS = frozenset("-*+\N{BULLET}\N{EN DASH}\N{EM DASH}")
_NUMBERED = re.compile(r"(\d{1,2})[.)]")
_END = re.compile(rf"(?:[.!?]+|[{SENTENCE_MARKS}])[\"')\]]*$")
_CLOSED = re.compile(rf"[{SENTENCE_MARKS}][\"')]*$")
_PAUSES = frozenset(",;:-\N{EN DASH}\u3001" + SENTENCE_MARKS)


@dataclass(frozen=True)
class Word:
    """A word that is spoken.

    Attributes:
        text: as written, with what stands at it; the words that a number becomes share the number.
        spoken: as said, without spaces, with its punctuation.
        first, last: of its sentence.
        end: characters of the source up to the end of `text`.
    """

    text: str
    spoken: str
    first: bool
    last: bool
    end: int


@dataclass(frozen=True)
class _Piece:
    """One or more words of the source that are said together.

    Attributes:
        source: as written.
        bare: without markup.
        end: characters of the text up to its end.
        breaks: lines that ended before it.
    """

    source: str
    bare: str
    end: int
    breaks: int

    def joins(self, word: "_Piece", language: str) -> bool:
        return bool(word.bare) and len(self.bare) < _LONGEST_WORD and belong_together(self.bare, word.bare, language)


class SpokenText:
    """The words of a text that comes piece by piece; any cutting gives the same ones.

    Args:
        language: of the words for numbers and signs; see `normalizer.normalize`.
        max_units: of a sentence (see `units_of`); longer ones are cut behind a comma, or between two words.
    """

    def __init__(self, language: str = "en", max_units: int = MAX_UNITS) -> None:
        if max_units < _LONGEST_WORD + 1 + _MARGIN:
            raise ValueError(f"max_units ({max_units}) must be at least {_LONGEST_WORD + 1 + _MARGIN}")
        self._language = language
        self._max_units = max_units
        self._done = 0  # characters seen
        self._coming: list[str] = []  # of the word that is not complete
        self._space: list[str] = []  # before it
        self._open: _Piece | None = None  # what the next word may belong to
        self._breaks = 2  # lines that ended since the last word
        self._item = False  # an item of a list or a heading began since
        self._fenced = False
        self._held: Word | None = None
        self._held_bare = self._bare_before = ""
        self._units = _MARGIN

    def push(self, text: str) -> list[Word]:
        """The words that this text decides."""
        words: list[Word] = []
        for character in text:
            if character.isspace():
                words += self._complete()
                self._breaks += character == "\n"
                self._space.append(character)
            else:
                self._coming.append(character)
            self._done += 1
        return words

    def finish(self) -> list[Word]:
        """The rest. Another text may follow; places are counted on."""
        words = [*self._complete(), *self._close()]
        if self._held is not None:
            words.append(self._ended(self._held))
        self._held, self._breaks, self._item, self._fenced, self._units = None, 2, False, False, _MARGIN
        return words

    def _complete(self) -> list[Word]:
        """What the end of a source word decides."""
        if not self._coming:
            return []
        source, space = "".join(self._coming), "".join(self._space)
        self._coming.clear()
        self._space.clear()
        fences = source.count(_FENCE)
        was_fenced, self._fenced = self._fenced, self._fenced ^ (fences % 2 == 1)
        if was_fenced or self._fenced:
            return self._close()
        begins_line = self._breaks > 0
        if begins_line and (source in _BULLETS or not source.strip("#")):
            words = self._close()
            self._item = True
            return words
        bare = plain_inline(_LINK.sub("", source)).translate(TYPOGRAPHY).lstrip("[!").strip()
        words = []
        number = _NUMBERED.fullmatch(bare) if begins_line else None
        if number:  # "1." at the beginning of a line is no sentence
            words = self._close()
            self._item, bare = True, f"{number[1]},"
        piece = _Piece(source, bare, self._done, self._breaks)
        before = self._open
        if before is not None and not begins_line and before.joins(piece, self._language):
            piece = _Piece(f"{before.source}{space}{source}", f"{before.bare} {bare}", self._done, before.breaks)
        else:
            words += self._close()
        self._breaks = 0
        if bare and is_open(bare, self._language):
            self._open = piece
            return words
        self._open = None
        return words + self._say(piece)

    def _close(self) -> list[Word]:
        """Says what waited for its next word."""
        piece, self._open = self._open, None
        return [] if piece is None else self._say(piece)

    def _say(self, source: "_Piece") -> list[Word]:
        words: list[Word] = []
        for piece in _pieces(source.bare, self._language, self._held_bare):
            if not any(map(_is_speakable, piece)):
                self._pause(source)
                continue
            if self._held is not None:
                ends = self._ends(source, piece)
                words.append(self._ended(self._held) if ends else self._held)
                self._units = _MARGIN if ends else self._units
            first = self._held is None or words[-1].last
            if self._held is None or self._held.end != source.end:
                self._bare_before = self._held_bare
            self._held = Word(source.source, _capital(piece) if first else piece, first, False, source.end)
            self._held_bare = source.bare
            self._units += len(piece.encode()) + (not first)
            source, self._item = replace(source, breaks=0), False
        self._breaks += source.breaks  # of a piece without words
        return words

    def _ends(self, source: "_Piece", piece: str) -> bool:
        """Whether the held word is the last of its sentence, now that the next one is known."""
        assert self._held is not None
        bare = source.bare
        if self._item or source.breaks > 1 or (source.breaks and (bare[0] == '"' or bare[0].isupper())):
            return True
        if self._units + 1 + len(piece.encode()) > self._max_units:
            return True
        if self._units > _LONG * self._max_units and self._held.spoken.endswith((",", ";", ":")):
            return True
        if self._held.end == source.end:  # of the same source word
            return False
        end = _END.search(self._held_bare)
        if end is None:
            return False
        before = f"{self._bare_before} {self._held_bare[: end.start()]}"
        return is_sentence_end(before, end[0], bare, self._language)

    def _pause(self, source: "_Piece") -> None:
        """A dash between words, or dots, is heard like a comma."""
        held = self._held
        if held is not None and not source.breaks and held.spoken[-1] not in _PAUSES and self._units < self._max_units:
            self._held = replace(held, spoken=f"{held.spoken},")
            self._units += 1

    def _ended(self, word: Word) -> Word:
        spoken = word.spoken
        if not _CLOSED.search(spoken):
            spoken = f"{spoken.rstrip(',;:-')}."
        return replace(word, spoken=spoken, last=True)


def spoken_words(text: str, language: str = "en", max_units: int = MAX_UNITS) -> list[list[Word]]:
    """The words of each sentence of a whole text; see `SpokenText`."""
    stream = SpokenText(language, max_units)
    sentences: list[list[Word]] = []
    for word in (*stream.push(text), *stream.finish()):
        if word.first:
            sentences.append([])
        sentences[-1].append(word)
    return sentences


def clip_words(text: str, language: str = "en") -> list[Word]:
    """The words of a recording's text: one sentence, whatever it holds and however long it is."""
    words = [word for sentence in spoken_words(text, language, max_units=1 << 30) for word in sentence]
    last = len(words) - 1
    return [replace(word, first=n == 0, last=n == last) for n, word in enumerate(words)]


def said_words(text: str) -> list[Word]:
    """The words of one sentence out of what is said, `spoken` of each with a space between: nothing is changed."""
    parts = text.split(" ")
    words, end = [], -1
    for n, part in enumerate(parts):
        end += 1 + len(part)
        words.append(Word(part, part, n == 0, n == len(parts) - 1, end))
    return words


def units_of(words: Sequence[Word]) -> tuple[list[int], list[int]]:
    """What the Talker reads of a sentence.

    Returns:
        BEGIN, the UTF-8 bytes of the words, each after the first with a space before it, and END; and the number of
        the word that each unit is of: BEGIN is of the first, END of the last.

    Raises:
        ValueError: there are no words.
    """
    from muomni.model.talker.batch import BEGIN, END

    if not words:
        raise ValueError("a sentence has at least one word")
    units, numbers = [BEGIN], [0]
    for number, word in enumerate(words):
        encoded = (" " * (number > 0) + word.spoken).encode()
        units += encoded
        numbers += [number] * len(encoded)
    return [*units, END], [*numbers, len(words) - 1]


def tokens_of(words: Sequence[Word], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the Thinker reads of a sentence: each word by itself, so that the next one changes nothing.

    What is said is encoded, not what was written: numbers come in words, as in the texts of recordings.

    Returns:
        Tokens, and the place of each word's last one.
    """
    ids: list[int] = []
    places: list[int] = []
    for encoded in tokenizer.encode_batch([" " * (n > 0) + word.spoken for n, word in enumerate(words)]):
        ids += encoded
        places.append(len(ids) - 1)
    return ids, places


def _pieces(bare: str, language: str, before: str) -> list[str]:
    """A piece of the source without markup, as it is said; pieces without letters or digits are pauses."""
    text = normalize_piece(bare, language, before)
    if not any(map(_is_speakable, text)):
        return [] if _PAUSES.isdisjoint(bare) else [","]
    pieces: list[str] = []
    for part in re.sub(r"-{2,}", " - ", re.sub(r"\.{2,}", ", ", text)).split():
        said = part.lstrip("-,;:.!?)\u3001\u3002").rstrip("-(")
        if any(map(_is_speakable, said)):
            pieces += _cut(said)
        elif not _PAUSES.isdisjoint(part):
            pieces.append(",")
    return pieces


def _is_speakable(character: str) -> bool:
    return character.isalpha() or character.isdigit()


def _cut(word: str) -> list[str]:
    parts = [""]
    size = 0
    for character in word:
        width = len(character.encode())
        if size + width > _LONGEST_WORD:
            parts.append("")
            size = 0
        parts[-1] += character
        size += width
    return [part for part in parts if any(map(_is_speakable, part))]


def _capital(word: str) -> str:
    capital = word[0].upper()
    return capital + word[1:] if len(capital) == 1 else word
