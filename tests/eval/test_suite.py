"""Sets of test data: their kinds, what is measured of them, and the report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from muomni.config import SyntheticSpec
from muomni.data.synthetic.writer import write_items
from muomni.errors import DataError, UserError
from muomni.eval.report import as_html, as_json
from muomni.eval.suite import Evaluation, TestSet, evaluate_sets, read_set, sentences_of, world_set

if TYPE_CHECKING:
    from muomni import MuOmni

PAIRS = [{"good": "The cat sat.", "bad": "The cat sit.", "field": "verbs"}] * 3
ENDINGS = [{"context": "A cat.", "choices": ["It sat.", "The bone."], "answer": 0}] * 2
TEXTS = [{"text": "The dog ate the bone, and then the dog slept."}] * 2


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[TestSet]:
    folder = tmp_path_factory.mktemp("sets")
    soundfile.write(folder / "a.wav", 0.1 * np.sin(np.arange(8_000) / 9), 16_000)
    recordings = [{"audio": "a.wav", "text": "The cat sat."}, {"audio": "a.wav", "text": "!"}]
    world = write_items(SyntheticSpec(synthetic="world", count=8, part="held_out"), folder / "world")
    files = [
        written(folder, "pairs", PAIRS),
        written(folder, "endings", ENDINGS),
        written(folder, "texts", TEXTS),
        written(folder, "clips", recordings),
        world,
    ]
    return [read_set(path) for path in files]


def test_kinds_are_told_by_their_keys(sets: list[TestSet]) -> None:
    assert [one.kind for one in sets] == ["pairs", "endings", "texts", "recordings", "questions"]
    assert sets[3].areas() == {"hear", "speak"}
    assert sets[4].areas() == {"text", "see"}
    assert [sentence.text for sentence in sentences_of(sets, 5)] == ["The cat sat."]


def test_all_kinds_are_measured(omni: "MuOmni", sets: list[TestSet]) -> None:
    done: list[int] = []
    found = evaluate_sets(omni, sets, ["text", "see", "hear"], batch_size=4, report=done.append)
    assert [figure.area for figure in found.figures] == sorted(
        (figure.area for figure in found.figures), key=["text", "see", "hear"].index
    )
    names = {(figure.set_name, figure.name): figure for figure in found.figures}
    assert names["pairs", "likelier is right"].count == names["pairs verbs", "likelier is right"].count == 3
    assert names["endings", "true ending"].beside == "chance 50.0%"
    assert not names["texts", "bits per byte"].is_share
    assert names["clips", "word error"].count == 3  # words; the row without a word is left out
    asked = [figure for figure in found.figures if figure.name == "right replies"]
    assert sum(figure.count for figure in asked) == 8
    values = as_json(found, None)
    assert json.loads(json.dumps(values))["speech"] is None
    assert len(values["transcripts"]["clips"]) == 1
    page = as_html(found, [], name="a <run>", command="muomni eval", notes=["A note."])
    assert "a &lt;run&gt;" in page
    assert page.count("<audio") == 1
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"


def test_the_world_is_asked_without_a_file(omni: "MuOmni") -> None:
    one = world_set(("scene", "facts"), 6)
    again = world_set(("scene", "facts"), 6)
    assert one == again
    found = evaluate_sets(omni, [one], ["see"], report=lambda _: None)
    assert all(figure.area == "see" for figure in found.figures)
    assert isinstance(found, Evaluation)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "is empty"),
        ([{"colour": "red"}], "says nothing that can be judged"),
        ([PAIRS[0], {"good": "a"}], "line 2: has no bad"),
        ([ENDINGS[0], {"context": "a", "choices": ["b"]}], "line 2: has no answer"),
        ([{"audio": 3, "text": "a"}], "line 1"),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_set(written(tmp_path, "rows", rows))


def test_an_ending_that_is_none_is_told(omni: "MuOmni", tmp_path: Path) -> None:
    one = read_set(written(tmp_path, "rows", [{**ENDINGS[0], "answer": 2}]))
    with pytest.raises(UserError, match="answer = 2: there are 2 choices"):
        evaluate_sets(omni, [one], ["text"], report=lambda _: None)
