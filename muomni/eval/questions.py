"""Questions with known answers, put to a model: is the reply that answer?

A set of questions is a file of JSON lines. Each holds a conversation whose last message is the answer, as training
reads it, and may say the skill that it takes, `choices` (all answers that its kind can have) and `also` (other answers
that are as good); `muomni data synth --held-out` writes such files. Or it holds a picture or a sound and, in data sets
as they come, what is to be seen or heard: see `Question.of_row`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muomni.data import check_messages
from muomni.data.sources.readers import jsonl_rows
from muomni.data.text.chat import Message
from muomni.errors import DataError
from muomni.eval.shares import Share

if TYPE_CHECKING:
    from muomni.api.model import MuOmni

_MORE_TOKENS = 8
_ASK_NAME = "What is in the picture?"


@dataclass(frozen=True)
class Question:
    """A prompt and what the reply should be.

    Attributes:
        skill: its kind, for the table.
        prompt: messages.
        answer: the right reply.
        choices: all answers that its kind can have; empty: very many.
        also: other replies that are as good.
    """

    skill: str
    prompt: Sequence[Message]
    answer: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def is_right(self, reply: str) -> bool:
        """Whether a reply is an answer, but for case, accents and what stands around the words."""
        return plain(reply) in {plain(text) for text in (self.answer, *self.also)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any], skill: str, origin: str, root: Path) -> "Question":
        """From a line of a file.

        Args:
            row: with `messages`; or with `image`, and `choices` and the number of the right one as `answer`, or
                `caption`.
            skill: where the row says none.
            origin: file and line, for errors.
            root: what paths are relative to.

        Raises:
            DataError: it is none of these.
        """
        if "messages" in row:
            messages = row["messages"]
            answer = str(row.get("answer", ""))
            also, choices = row.get("also", ()), row.get("choices", ())
        elif isinstance(row.get("image"), str):
            text, answer, choices = _about_picture(row, origin)
            medium = {"type": "image", "image": row["image"], "archive": row.get("archive")}
            parts = [medium, {"type": "text", "text": text}]
            messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
            also = ()
        else:
            raise DataError(f"{origin}: needs messages, or an image with choices or a caption; it has {', '.join(row)}")
        checked = check_messages(messages, origin, DataError, inputs=("image", "audio"), root=root)
        if checked[-1]["role"] != "assistant":
            raise DataError(f"{origin}: the last message must be the answer, of the assistant")
        answer = answer or str(checked[-1]["content"])
        return cls(str(row.get("skill", skill)), checked[:-1], answer, tuple(choices), tuple(also))


def _about_picture(row: Mapping[str, Any], origin: str) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer and choices of a data set's row with a picture."""
    if isinstance(choices := row.get("choices"), list) and isinstance(row.get("answer"), int):
        if not 0 <= row["answer"] < len(choices):
            raise DataError(f"{origin}: answer = {row['answer']}: there are {len(choices)} choices")
        listed = "; ".join(map(str, choices))
        return (
            f"{row.get('question', _ASK_NAME)} Choose one: {listed}.",
            str(choices[row["answer"]]),
            tuple(map(str, choices)),
        )
    if isinstance(row.get("caption"), str):
        return _ASK_NAME, row["caption"], ()
    raise DataError(f"{origin}: a row with an image needs choices with an answer, or a caption")


def plain(text: str) -> str:
    """Lower case, without accents and punctuation, words with single spaces."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return " ".join(re.findall(r"[^\W_]+", "".join(c for c in letters if not unicodedata.combining(c))))


def read_questions(path: Path, limit: int | None = None, skill: str | None = None) -> list[Question]:
    """The questions of a file, the first so many.

    Args:
        path: of the file.
        limit: None for all.
        skill: of rows that say none; None for the file's name.

    Raises:
        DataError: it cannot be read, or a line is no question.
    """
    questions = []
    for origin, row in islice(jsonl_rows(path), limit):
        if isinstance(row, DataError):
            raise row
        questions.append(Question.of_row(row, skill or path.name.split(".")[0], origin, path.parent))
    if not questions:
        raise DataError(f"{path}: holds no questions")
    return questions


@dataclass(frozen=True)
class Answered:
    """A question and the model's reply."""

    question: Question
    reply: str

    @property
    def right(self) -> bool:
        """See `Question.is_right`."""
        return self.question.is_right(self.reply)


@dataclass(frozen=True)
class SkillResult:
    """How well a model has a skill.

    Attributes:
        skill: its name.
        right: replies that were right.
        chance: what guessing among the choices would reach; None where there are very many.
        majority: what the most common answer alone would reach.
        answered: all questions.
    """

    skill: str
    right: Share
    chance: float | None
    majority: float
    answered: Sequence[Answered] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        low, high = self.right.interval
        rates = {"rate": self.right.rate, "low": low, "high": high, "chance": self.chance, "majority": self.majority}
        return {"skill": self.skill, "right": self.right.count, "total": self.right.total, **rates}


def answer_all(
    model: "MuOmni",
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    report: Callable[[int], None] = lambda _: None,
) -> list[Answered]:
    """The model's replies, drawn greedily; each may be a little longer than the right answer.

    A reply that cannot be given, for a broken picture for example, is an empty one.

    Args:
        model: answers.
        questions: of any kinds.
        batch_size: prompts side by side.
        report: called with the number of questions done since the last call.
    """
    tokenizer = model.tokenizer
    answered: list[Answered] = []
    step = 8 * batch_size
    for first in range(0, len(questions), step):
        part = questions[first : first + step]
        lengths = [
            max(len(tokenizer.encode(text)) for text in (q.answer, *q.also)) if tokenizer is not None else 64
            for q in part
        ]
        replies = model.chat_batch(
            [question.prompt for question in part],
            sampling=[{"max_new_tokens": length + _MORE_TOKENS} for length in lengths],
            temperature=0,
            batch_size=batch_size,
            progress=False,
            on_error="reply",
        )
        answered += [Answered(question, reply.text.strip()) for question, reply in zip(part, replies, strict=True)]
        report(len(part))
    return answered


def by_skill(answered: Iterable[Answered], *, whole: bool = False) -> list[SkillResult]:
    """Results of each skill, in alphabetical order.

    Args:
        answered: of any skills.
        whole: take `scene/colour` and `scene/count` together as `scene`.
    """
    groups: dict[str, list[Answered]] = {}
    for one in answered:
        skill = one.question.skill
        groups.setdefault(skill.partition("/")[0] if whole else skill, []).append(one)
    return [_result(skill, group) for skill, group in sorted(groups.items())]


def _result(skill: str, group: list[Answered]) -> SkillResult:
    choices = [len(one.question.choices) for one in group]
    # The most common answer of each kind, for which its kind must be known.
    kinds: dict[str, Counter[str]] = {}
    for one in group:
        kinds.setdefault(one.question.skill, Counter())[plain(one.question.answer)] += 1
    majority = sum(max(counts.values()) for counts in kinds.values()) / len(group)
    chance = sum(1 / count for count in choices) / len(group) if all(choices) else None
    return SkillResult(skill, Share.of(one.right for one in group), chance, majority, group)
