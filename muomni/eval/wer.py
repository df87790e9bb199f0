"""Word error rate: how much of what was said a transcription gets wrong."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are said, so that spelling and punctuation do not count as errors.

    Lower case, without accents and punctuation but for apostrophes inside a word; numbers below one hundred in
    words, longer ones digit by digit, as telephone numbers are said.
    """
    plain = unicodedata.normalize("NFKD", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words: list[str] = []
    for piece in re.findall(r"[a-z]+(?:'[a-z]+)*|[0-9]+", plain):
        words += _number_words(piece) if piece[0].isdigit() else [piece]
    return words


def _number_words(digits: str) -> list[str]:
    value = int(digits)
    if len(digits) > 2 or (len(digits) == 2 and digits[0] == "0"):
        return [_ONES[int(digit)] for digit in digits]
    if value < len(_ONES):
        return [_ONES[value]]
    tens, ones = divmod(value, 10)
    return [_TENS[tens - 2], *([_ONES[ones]] if ones else [])]


def edit_distance(said: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest insertions, deletions and replacements that make one of the other (Levenshtein, 1966)."""
    row = list(range(len(heard) + 1))
    for number, word in enumerate(said, 1):
        corner, row[0] = row[0], number
        for place, other in enumerate(heard, 1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (word != other))
    return row[-1]


@dataclass(frozen=True)
class WordErrors:
    """Attributes:
    errors: words to insert, delete or replace, over all clips.
    words: that were said.
    exact: clips without any error; of `clips`.
    """

    errors: int
    words: int
    exact: int
    clips: int

    @property
    def rate(self) -> float:
        """Errors per word that was said; may exceed 1."""
        return self.errors / max(1, self.words)


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Over (what was said, what was heard) of some clips; both are taken as `spoken_words`."""
    errors = words = exact = clips = 0
    for truth, answer in pairs:
        said, heard = spoken_words(truth), spoken_words(answer)
        distance = edit_distance(said, heard)
        errors, words, exact, clips = errors + distance, words + len(said), exact + (distance == 0), clips + 1
    return WordErrors(errors, words, exact, clips)
