"""When the words of a text are said: for captions, and for what somebody has heard who stops listening."""

from collections.abc import Sequence
from typing import NamedTuple


class SaidWord(NamedTuple):
    """A word of a text that is spoken.

    Attributes:
        begin, end: when it is said, in seconds from the first sound on.
        text_end: characters of the text up to its end.
    """

    begin: float
    end: float
    text_end: int


class SaidWords:
    """The words that were said so far.

    A word that became several, as numbers do, is one; one that was passed over, as short ones may be, is none.

    Attributes:
        words: in order.
    """

    def __init__(self) -> None:
        self.words: list[SaidWord] = []

    def add(self, begin: float, frame_s: float, text_ends: Sequence[int]) -> None:
        """Takes the frames that follow.

        Args:
            begin: of the first of them, in seconds from the first sound on.
            frame_s: seconds of a frame.
            text_ends: for each frame, the characters of the text up to the end of the word that it says.
        """
        for number, text_end in enumerate(text_ends):
            start = begin + number * frame_s
            if self.words and self.words[-1].text_end == text_end:
                start = self.words.pop().begin
            self.words.append(SaidWord(start, begin + (number + 1) * frame_s, text_end))

    def heard(self, seconds: float) -> int:
        """Characters of the text up to the end of the last word of which at least half was heard.

        Args:
            seconds: of the sound that were played.
        """
        return max((word.text_end for word in self.words if (word.begin + word.end) / 2 <= seconds), default=0)
