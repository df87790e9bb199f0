"""What a model can do, by sets of test data: reading, seeing, hearing, speaking.

A set is a file of JSON lines whose rows say what they are by their keys:

* `good`, `bad`: two sentences, of which the first should be the likelier one;
* `context`, `choices`, `answer`: a story and its endings;
* `text` alone: text to be predicted;
* `audio`, `text`: a recording, to be written down, and beside which the model's own speech is judged;
* `messages`, or `image` with choices or a caption: a question (`muomni.eval.questions`).

Where no file is given, the held-out part of the small world is asked (`muomni.data.synthetic`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from muomni.config import SyntheticSpec
from muomni.config.recipe_data import Skill
from muomni.data import check_messages
from muomni.data.media.audio import load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.sources.readers import jsonl_rows
from muomni.data.speech.manifest import read_manifest
from muomni.data.synthetic.world import open_world
from muomni.errors import DataError
from muomni.eval.questions import Answered, Question, answer_all, by_skill, read_questions
from muomni.eval.shares import Share
from muomni.eval.speech_quality import Sentence
from muomni.eval.texts import bits_per_byte, endings, minimal_pairs
from muomni.eval.wer import spoken_words, word_errors

if TYPE_CHECKING:
    from muomni.api.model import MuOmni

Area = Literal["text", "see", "hear", "speak"]
AREAS: tuple[Area, ...] = ("text", "see", "hear", "speak")
Kind = Literal["pairs", "endings", "texts", "recordings", "questions"]
Report = Callable[[int], None]
# Draws of clips for the interval of a word error.
_RESAMPLES = 1000


@dataclass(frozen=True)
class TestSet:
    """Test data of one file.

    Attributes:
        name: of the file, without its ending.
        kind: see the module.
        rows: as they were read; `Question` for questions, (MediaRef, row) for recordings.
    """

    __test__ = False  # no test class of pytest

    name: str
    kind: Kind
    rows: Sequence[Any]

    def areas(self) -> set[Area]:
        """What a model must be able to do for it."""
        if self.kind == "recordings":
            return {"hear", "speak"}
        if self.kind != "questions":
            return {"text"}
        return {area_of(question) for question in self.rows}


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        area, set_name, name: what was measured, and on what.
        value: a share from 0 to 1, or bits.
        low, high: in which the true value lies with 95% confidence; None where that is not known.
        count: of how many.
        beside: what guessing reaches, in words.
        is_share: whether it is printed in percent.
    """

    area: Area
    set_name: str
    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    beside: str = ""
    is_share: bool = True

    @classmethod
    def of_share(cls, area: Area, set_name: str, name: str, share: Share, beside: str = "") -> "Figure":
        """From a share, with its interval."""
        return cls(area, set_name, name, share.rate, *share.interval, share.total, beside)

    @property
    def text(self) -> str:
        """With its interval."""
        if not self.is_share:
            return f"{self.value:.3f}"
        interval = "" if self.low is None or self.high is None else f" ({100 * self.low:.1f} to {100 * self.high:.1f})"
        return f"{self.value:.1%}{interval}"


@dataclass
class Evaluation:
    """All results.

    Attributes:
        figures: in the order of areas and sets.
        answered: questions and replies by name of their set.
        transcripts: recording, text and transcript by name of their set.
    """

    figures: list[Figure] = field(default_factory=list)
    answered: dict[str, list[Answered]] = field(default_factory=dict)
    transcripts: dict[str, list[tuple[MediaRef, str, str]]] = field(default_factory=dict)


def area_of(question: Question) -> Area:
    """By the media of its prompt: sounds before pictures."""
    kinds = {part["type"] for message in question.prompt for part in _parts(message["content"])}
    return "hear" if "audio" in kinds else "see" if kinds & {"image", "video"} else "text"


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else []


def read_set(path: Path, count: int | None = None) -> TestSet:
    """The first so many rows of a file.

    Raises:
        DataError: it cannot be read, or its rows are of no known kind.
    """
    name = path.name.split(".")[0] if path.stem not in ("train", "val", "val.jsonl") else path.parent.name
    origin, first = next(jsonl_rows(path), ("", None))
    if first is None:
        raise DataError(f"{path}: is empty")
    if isinstance(first, DataError):
        raise first
    keys = first.keys()
    if keys >= {"messages"} or "image" in keys:
        return TestSet(name, "questions", read_questions(path, count, name))
    if keys >= {"audio", "text"}:
        return TestSet(name, "recordings", list(islice(read_manifest(path, "text"), count)))
    kinds: dict[Kind, set[str]] = {
        "pairs": {"good", "bad"}, "endings": {"context", "choices", "answer"}, "texts": {"text"}
    }  # fmt: skip
    kind = next((kind for kind, wanted in kinds.items() if keys >= wanted), None)
    if kind is None:
        raise DataError(f"{origin}: says nothing that can be judged; it has {', '.join(keys)} (see docs/eval.md)")
    rows = []
    for place, row in islice(jsonl_rows(path), count):
        if isinstance(row, DataError):
            raise row
        if missing := kinds[kind] - row.keys():
            raise DataError(f"{place}: has no {', '.join(sorted(missing))}, as the lines before it have")
        rows.append(row)
    return TestSet(name, kind, rows)


def world_set(skills: Sequence[Skill], count: int, seed: int = 0) -> TestSet:
    """The held-out part of the small world.

    Raises:
        UserError: `spoken` needs a synthesiser, which is not installed.
    """
    spec = SyntheticSpec(synthetic="world", count=count, skills=tuple(skills), seed=seed, part="held_out")
    questions = []
    with open_world(spec) as world:
        for number in range(count):
            item = world.item(number)
            prompt = check_messages(item.messages, f"item {number}", DataError, inputs=("image", "audio"))[:-1]
            questions.append(Question(item.skill, prompt, item.answer, item.choices, item.also))
    return TestSet("world", "questions", questions)


def sentences_of(sets: Sequence[TestSet], count: int | None) -> list[Sentence]:
    """The recordings of sets as sentences to be spoken, with their recordings as references."""
    rows = [row for one in sets if one.kind == "recordings" for row in one.rows]
    spoken = ((ref, row["text"]) for ref, row in rows if spoken_words(row["text"]))
    return [Sentence(text, load_audio(ref)) for ref, text in islice(spoken, count)]


def evaluate_sets(
    model: "MuOmni", sets: Sequence[TestSet], areas: Sequence[Area], *, batch_size: int = 32, report: Report
) -> Evaluation:
    """Everything but the model's own speech (`muomni.eval.speech_quality`).

    Args:
        model: with a tokenizer.
        sets: what does not belong to the areas is left out.
        areas: to be judged; the model must have the encoders for them.
        batch_size: prompts side by side.
        report: called with the number of rows done since the last call.
    """
    model.eval()
    result = Evaluation()
    for area in areas:
        for one in sets:
            if area not in one.areas():
                continue
            if one.kind == "questions":
                _questions(model, one, area, batch_size, report, result)
            elif one.kind == "recordings" and area == "hear":
                _recordings(model, one, batch_size, report, result)
            elif area == "text":
                _texts(model, one, report, result)
    return result


def _questions(model: "MuOmni", one: TestSet, area: Area, batch_size: int, report: Report, result: Evaluation) -> None:
    asked = [question for question in one.rows if area_of(question) == area]
    answered = answer_all(model, asked, batch_size=batch_size, report=report)
    result.answered.setdefault(one.name, []).extend(answered)
    for skill in by_skill(answered, whole=True):
        chance = "" if skill.chance is None else f"chance {skill.chance:.1%}, "
        beside = f"{chance}majority {skill.majority:.1%}"
        name = one.name if skill.skill == one.name else f"{one.name} {skill.skill}"
        result.figures.append(Figure.of_share(area, name, "right replies", skill.right, beside))


def _recordings(model: "MuOmni", one: TestSet, batch_size: int, report: Report, result: Evaluation) -> None:
    rows = [(ref, row["text"]) for ref, row in one.rows if spoken_words(row["text"])]
    heard = model.transcribe([ref for ref, _ in rows], batch_size=batch_size, progress=False, on_error="reply")
    report(len(rows))
    pairs = [(text, transcript.text) for (_, text), transcript in zip(rows, heard, strict=True)]
    errors = word_errors(pairs)
    low, high = _word_error_interval(pairs)
    result.figures.append(Figure("hear", one.name, "word error", errors.rate, low, high, errors.words))
    exact = Share(errors.exact, errors.clips)
    result.figures.append(Figure.of_share("hear", one.name, "without any error", exact))
    result.transcripts[one.name] = [
        (ref, text, transcript.text) for (ref, text), transcript in zip(rows, heard, strict=True)
    ]


def _word_error_interval(pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """By drawing the clips again and again (bootstrap; Bisani and Ney, 2004)."""
    each = [word_errors([pair]) for pair in pairs]
    errors = np.array([one.errors for one in each])
    words = np.array([one.words for one in each])
    drawn = np.random.default_rng(0).integers(0, len(each), (_RESAMPLES, len(each)))
    rates = errors[drawn].sum(1) / np.maximum(1, words[drawn].sum(1))
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def _texts(model: "MuOmni", one: TestSet, report: Report, result: Evaluation) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if one.kind == "pairs":
        shares = minimal_pairs(model, tokenizer, one.rows)
        for name, share in shares.items():
            set_name = one.name if name == "all" else f"{one.name} {name}"
            result.figures.append(Figure.of_share("text", set_name, "likelier is right", share, "chance 50.0%"))
    elif one.kind == "endings":
        share = endings(model, tokenizer, one.rows)
        chance = sum(1 / len(row["choices"]) for row in one.rows) / len(one.rows)
        result.figures.append(Figure.of_share("text", one.name, "true ending", share, f"chance {chance:.1%}"))
    else:
        bits = bits_per_byte(model, tokenizer, [str(row["text"]) for row in one.rows])
        result.figures.append(
            Figure("text", one.name, "bits per byte", bits.bits, None, None, bits.size, "", is_share=False)
        )
    report(len(one.rows))
