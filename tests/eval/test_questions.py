"""Questions with known answers: forms of rows, right replies, shares with their intervals."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.config import SyntheticSpec
from muomni.data.synthetic.writer import write_items
from muomni.errors import DataError
from muomni.eval.questions import Answered, Question, answer_all, by_skill, plain, read_questions
from muomni.eval.shares import Share

if TYPE_CHECKING:
    from muomni import MuOmni


@given(count=st.integers(0, 500), more=st.integers(0, 500))
def test_an_interval_holds_the_rate(count: int, more: int) -> None:
    share = Share(count, count + more)
    low, high = share.interval
    assert 0 <= low <= share.rate <= high <= 1
    larger = Share(10 * count, 10 * (count + more)).interval
    assert larger[1] - larger[0] <= high - low


def test_intervals_are_wilsons() -> None:
    """The figures of Newcombe (1998), table I."""
    assert [round(value, 4) for value in Share(81, 263).interval] == [0.2553, 0.3662]
    assert [round(value, 4) for value in Share(0, 20).interval] == [0.0, 0.1611]
    assert str(Share(81, 263)) == "30.8% (25.5 to 36.6)"


@pytest.mark.parametrize(
    ("reply", "right"),
    [("Red.", True), (" red", True), ("RED!", True), ("It is red.", False), ("", False), ("réd", True), ("blue", True)],
)
def test_right_replies(reply: str, right: bool) -> None:
    question = Question("colour", [], "Red.", also=("Blue.",))
    assert question.is_right(reply) == right


def test_plain_keeps_words_apart() -> None:
    assert plain("E-A-R, l  y.") == "e a r l y"


def test_files_of_every_form_are_read(tmp_path: Path) -> None:
    manifest = write_items(SyntheticSpec(synthetic="world", count=9, part="held_out"), tmp_path / "world")
    read = read_questions(manifest, 5)
    assert len(read) == 5
    assert all(question.skill.partition("/")[0] in ("scene", "reading", "facts", "persona") for question in read)
    rows = tmp_path / "emoji.jsonl"
    medium = {"image": "a.png", "archive": "x.zip"}
    made = [
        {**medium, "question": "Which?", "choices": ["cat", "dog"], "answer": 1},
        {**medium, "caption": "tree"},
    ]
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    chosen, named = read_questions(rows)
    assert (chosen.skill, chosen.answer, chosen.choices) == ("emoji", "dog", ("cat", "dog"))
    assert chosen.prompt[0]["content"][-1] == {"type": "text", "text": "Which? Choose one: cat; dog."}
    assert (named.answer, named.choices) == ("tree", ())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": "a.png", "choices": ["a"], "answer": 1}, "answer = 1: there are 1 choices"),
        ({"image": "a.png"}, "needs choices with an answer, or a caption"),
        ({"text": "a"}, "needs messages, or an image"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message must be the answer"),
    ],
)
def test_wrong_rows_are_told(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 1.*{told}"):
        read_questions(path)


def test_a_model_is_asked(omni: "MuOmni", tmp_path: Path) -> None:
    spec = SyntheticSpec(synthetic="world", count=6, skills=("scene", "facts"))
    questions = read_questions(write_items(spec, tmp_path / "world"))
    done: list[int] = []
    answered = answer_all(omni, questions, batch_size=4, report=done.append)
    assert sum(done) == len(answered) == 6
    reply = answered[0].reply
    whole = omni.chat(list(questions[0].prompt), temperature=0, max_new_tokens=200).text
    assert reply == whole.strip()[: len(reply)]


def test_results_by_skill() -> None:
    def one(skill: str, answer: str, reply: str, choices: tuple[str, ...] = ("Yes.", "No.")) -> Answered:
        return Answered(Question(skill, [], answer, choices), reply)

    answered = [
        one("scene/exists", "Yes.", "yes"),
        one("scene/exists", "Yes.", "no"),
        one("scene/exists", "No.", "no"),
        one("scene/name", "A red star.", "a red star", ()),
    ]
    exists, name = by_skill(answered)
    assert (exists.right.count, exists.right.total, exists.chance) == (2, 3, 0.5)
    assert exists.majority == pytest.approx(2 / 3)
    assert (name.right.rate, name.chance) == (1, None)
    (scene,) = by_skill(answered, whole=True)
    assert (scene.skill, scene.right.total, scene.majority) == ("scene", 4, 0.75)
    assert scene.to_dict()["right"] == 3
