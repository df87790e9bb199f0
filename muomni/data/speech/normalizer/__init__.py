"""Text as it is said: numbers, money, units, dates, addresses and marks put into words, by language.

`normalize` is what training, `say` and `chat --speak` all use: the voice hears what it was taught. `languages` finds
the words of a language (a module each), `rules` are the patterns that all share, `markup` is what nobody says.
"""

from muomni.data.speech.normalizer.markup import SENTENCE_MARKS, TYPOGRAPHY, plain_inline
from muomni.data.speech.normalizer.normalize import (
    belong_together,
    interjections,
    is_open,
    is_sentence_end,
    missing_numbers,
    normalize,
    normalize_piece,
    reads_numbers,
)

__all__ = [
    "SENTENCE_MARKS",
    "TYPOGRAPHY",
    "belong_together",
    "interjections",
    "is_open",
    "is_sentence_end",
    "missing_numbers",
    "normalize",
    "normalize_piece",
    "plain_inline",
    "reads_numbers",
]
