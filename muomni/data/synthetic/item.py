"""One item of made data."""

from dataclasses import dataclass
from typing import Any

Question = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """A question and its answer.

    Attributes:
        skill: what it takes, "scene/colour" for example: the part before the slash is the skill that recipes name.
        question: a text, or parts of a message; pictures and sounds are the bytes of a file.
        answer: what a reply should be.
        choices: the answers that its kind of question can have; chance is one among them. Empty: very many.
        also: other replies that are as good.
    """

    skill: str
    question: Question
    answer: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """What is written in it."""
        parts = [self.question] if isinstance(self.question, str) else [part.get("text") for part in self.question]
        return [text for text in (*parts, self.answer) if text]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, as `check_messages` takes it."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


def sentence(text: str) -> str:
    """With a capital at the beginning and a full stop, unless it has an end."""
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in (".", "!", "?") else f"{text}."
