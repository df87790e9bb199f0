"""Word error rate: how much of what was said a transcription gets wrong; counted by jiwer."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from muomni.data.speech.normalizer.english import cardinal


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are said, so that spelling and punctuation do not count as errors.

    Lower case, without accents and punctuation but for apostrophes inside a word; numbers below one hundred in
    words, longer ones digit by digit, as telephone numbers are said.
    """
    plain = unicodedata.normalize("NFKD", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words: list[str] = []
    for token in re.findall(r"[a-z]+(?:'[a-z]+)*|[0-9]+", plain):
        words += _number_words(token) if token[0].isdigit() else [token]
    return words


def _number_words(digits: str) -> list[str]:
    digit_by_digit = len(digits) > 2 or (len(digits) == 2 and digits[0] == "0")
    return [word for part in (digits if digit_by_digit else [digits]) for word in cardinal(int(part)).split("-")]


@dataclass(frozen=True)
class WordErrors:
    """Errors of transcripts over some clips.

    Attributes:
        errors: words to insert, delete or replace, over all clips.
        words: of the references.
        exact: clips without any error; of `clips`.
    """

    errors: int
    words: int
    exact: int
    clips: int

    @property
    def rate(self) -> float:
        """Errors per word of the reference; may exceed 1."""
        return self.errors / max(1, self.words)


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Over (reference, transcript) of some clips; both are taken as `spoken_words`.

    Raises:
        ImportError: the package `jiwer` is not installed.
    """
    import jiwer

    texts = [(" ".join(spoken_words(reference)), " ".join(spoken_words(heard))) for reference, heard in pairs]
    if not texts:
        return WordErrors(0, 0, 0, 0)
    counts = jiwer.process_words([reference for reference, _ in texts], [heard for _, heard in texts])
    return WordErrors(
        errors=counts.substitutions + counts.deletions + counts.insertions,
        words=counts.hits + counts.substitutions + counts.deletions,
        exact=sum(reference == heard for reference, heard in texts),
        clips=len(texts),
    )
