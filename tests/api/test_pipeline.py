"""Pipelines: stages in their order, what is done is skipped, what was begun goes on, mistakes are told first."""

import json
from pathlib import Path
from typing import Any

import pytest

from muomni import MuOmni
from muomni.api import pipeline as module
from muomni.api.pipeline import PipelineResult, run_pipeline
from muomni.api.training import train
from muomni.config.pipeline import is_pipeline, load_pipeline
from muomni.errors import ConfigError, UserError
from muomni.files import follow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made data, a text model, and the same model on other data."""
    tmp_path = tmp_path_factory.mktemp("pipeline")
    text: dict[str, Any] = {
        "extends": "text-nano",
        "data": {"train": "${made}/items.jsonl", "seq_len": 64, "cache_dir": str(tmp_path / "cache")},
        "tokenizer": {"vocab_size": 384},
        "batch_size": 2,
        "max_steps": 4,
        "schedule": {"warmup_steps": 0},
        "eval": {"every": 2, "max_rows": 4},
        "compile": "off",
        "device": "cpu",
    }
    made = ["data", "synth", "--out", "${made}", "--count", "300", "--skill", "facts"]
    stages = [
        {"name": "made", "command": [word.replace("${made}", "${run}/01-made/items") for word in made]},
        {**text, "name": "first", "data": {**text["data"], "train": "${made}/items/items.jsonl"}},
        {
            **text,
            "name": "second",
            "data": {**text["data"], "train": [{"synthetic": "world", "count": 300, "skills": ["persona"]}]},
            "model": {"init_from": "${first}"},
        },
    ]
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"name": "two", "stages": stages}))
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> PipelineResult:
    """Run without a stop."""
    return run_pipeline(load_pipeline(str(file), ["second.max_steps=3"], file.parent / "whole"), say=lambda _: None)


def test_stages_run_in_their_order_and_only_once(
    file: Path, whole: PipelineResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_pipeline(str(file))
    said: list[str] = []
    result, run = whole, whole.run
    assert [stage.name for stage in result.stages] == ["made", "first", "second"]
    assert [stage.steps for stage in result.stages] == [None, 4, 3]
    assert not result.stopped
    assert follow(run / "best").resolve().parent.name == "03-second"
    assert MuOmni.from_pretrained(run, device="cpu").tokenizer is not None
    page = (run / "report.html").read_text()
    assert "3 of 3 stages" in page
    assert page.count("data:image/png") == 2

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a stage that is done runs again")

    monkeypatch.setattr(module, "train", never)
    again = run_pipeline(load_pipeline(str(run)), resume=True, say=said.append)
    assert again.stages == result.stages
    with pytest.raises(UserError, match="--resume goes on with it"):
        run_pipeline(load_pipeline(str(file), run=run))
    # Killed between the end of a stage and its note: nothing is computed again.
    monkeypatch.undo()
    (run / "03-second" / "stage.json").unlink()
    repaired = run_pipeline(load_pipeline(str(run)), resume=True, say=said.append)
    assert [(stage.name, stage.steps) for stage in repaired.stages] == [(s.name, s.steps) for s in result.stages]


def test_a_stage_that_was_stopped_goes_on(
    file: Path, whole: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []
    real = train

    def stopped_once(recipe: Any, run: Path, **options: Any) -> Any:
        calls.append((run.name, options["resume"]))
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr("muomni.training.signals.StopSignal.wanted", lambda *_: True)
                return real(recipe, run, **options)
        return real(recipe, run, **options)

    monkeypatch.setattr(module, "train", stopped_once)
    run = tmp_path / "run"
    result = run_pipeline(load_pipeline(str(file), ["second.max_steps=3"], run), say=lambda _: None)
    assert result.stopped
    assert [stage.name for stage in result.stages] == ["made"]
    result = run_pipeline(load_pipeline(str(run)), resume=True, say=lambda _: None)
    assert calls == [("02-first", False), ("02-first", True), ("03-second", False)]
    assert [stage.best_loss for stage in result.stages] == [stage.best_loss for stage in whole.stages]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stages": []}, "stages: must be a list"),
        ({"stages": [{"name": "A B", "command": ["data"]}]}, r"stages\[0\].name = 'A B'"),
        ({"stages": [{"name": "a", "command": ["rm", "-rf"]}]}, "'rm': must be a command of data, eval"),
        ({"stages": [{"name": "a", "command": ["data", "${b}"]}]}, r"\$\{b\}: no earlier stage has this name"),
        ({"stages": [{"name": "a", "command": ["data"]}, {"name": "a", "command": ["data"]}]}, "has this name"),
        ({"stages": [{"name": "a", "extends": "text-nano", "max_steps": 0}]}, "max_steps = 0"),
        ({"stages": [{"name": "a", "extends": "nothing"}]}, "no recipe 'nothing'"),
        ({"stages": [{"name": "a", "command": ["data"]}], "max_steps": 3}, "max_steps: unknown key"),
    ],
)
def test_mistakes_are_told_before_the_first_stage(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(change))
    with pytest.raises(ConfigError, match=told):
        load_pipeline(str(path))


def test_changes_begin_with_a_stage(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"begin with a stage, STAGE\.KEY=VALUE; stages: made, first, second"):
        load_pipeline(str(file), ["max_steps=3"])


def test_a_command_that_fails_ends_the_pipeline(file: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(file), run=tmp_path / "run")
    (tmp_path / "run" / "01-made" / "items").mkdir(parents=True)
    (tmp_path / "run" / "01-made" / "items" / "stranger").touch()
    with pytest.raises(UserError, match="stage made cannot be run"):
        run_pipeline(pipeline, say=lambda _: None)
    with pytest.raises(UserError, match="holds no pipeline"):
        run_pipeline(load_pipeline(str(file), run=tmp_path / "other"), resume=True)
