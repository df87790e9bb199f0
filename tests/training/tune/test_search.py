"""The search before a run: over trials that the test makes up, and a real one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muomni.accel.compile import blocks as compilation
from muomni.accel.measurements.worker import COMMAND
from muomni.accel.step_config import StepConfig
from muomni.child_process import ChildEndedError, ChildProcess
from muomni.config import Recipe, read_json
from muomni.errors import ConfigError, UserError
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train
from muomni.training.tune.search import TUNED, TUNING, Search, tune
from muomni.training.tune.trials import Trial

MIB = 2**20
BROKEN = {"subject": "muomni.training.tune.subject:RecipeSubject"}


def make_recipe(**more: Any) -> Recipe:
    made = {"data": {"train": "x", "seq_len": 32}, "model": {"preset": "nano"}, "max_steps": 1000, "device": "cpu"}
    return Recipe.model_validate(made | {"batch_size": 4, "gradient_accumulation_steps": 2, "tune": True} | more)


def search(
    recipe: Recipe,
    seconds: Callable[[StepConfig], float],
    peak: Callable[[StepConfig], int] = lambda _: 500 * MIB,
    **more: Any,
) -> Search:
    """Steps take what the test says; what would take over 1 GiB does not fit."""

    def attempt(step: StepConfig, deadline: float) -> Trial:
        if peak(step) > 1024 * MIB:
            return Trial(step, why_not="memory ran out", short=True)
        took = seconds(step)
        cost = 20.0 if step.compile == "blocks" else 0.0
        return Trial(step, (took,) * 3, took + cost, peak(step), total_steps=recipe.max_steps or 0, **more)

    return Search(recipe, attempt, 1024 * MIB, lambda _: None)


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "what_is_missing", lambda _: "no compiler in this test")


def test_larger_micro_batches_are_taken_while_they_are_faster() -> None:
    found = search(make_recipe(), lambda step: 1 / step.micro_batch)
    assert found.run().step.micro_batch == 8
    assert {trial.step.micro_batch * trial.step.accumulation for trial in found.trials} == {8}


def test_smaller_ones_where_they_are_faster() -> None:
    assert search(make_recipe(), lambda step: float(step.micro_batch)).run().step.micro_batch == 1


def test_what_is_within_the_noise_changes_nothing() -> None:
    recipe = make_recipe()
    best = search(recipe, lambda step: 1.0 if step.micro_batch == 4 else 0.97).run()
    assert best.step == StepConfig.of(recipe)


def test_a_gain_that_is_not_there_the_second_time_is_none() -> None:
    recipe, times = make_recipe(), iter([1.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    best = search(recipe, lambda _: next(times)).run()
    assert best.step == StepConfig.of(recipe)


def test_less_is_computed_again_where_memory_allows_it() -> None:
    recipe = make_recipe(gradient_checkpointing="full")
    cost = {"off": 1.0, "selective": 1.2, "full": 1.5}
    assert search(recipe, lambda step: cost[step.checkpointing]).run().step.checkpointing == "off"


def test_more_is_computed_again_where_larger_micro_batches_then_fit() -> None:
    def peak(step: StepConfig) -> int:
        return (
            (200 if step.checkpointing == "full" else 250)
            * step.micro_batch
            * MIB
            // (2 if step.micro_batch > 4 else 1)
        )

    def large(step: StepConfig) -> int:
        return 2000 * MIB if step.micro_batch == 8 and step.checkpointing != "full" else peak(step)

    best = search(make_recipe(), lambda step: 1.0 / step.micro_batch, large).run()
    assert (best.step.micro_batch, best.step.checkpointing) == (8, "full")


def test_a_recipe_that_does_not_fit_is_cut_until_it_does() -> None:
    best = search(make_recipe(), lambda _: 1.0, lambda step: 500 * step.micro_batch * MIB).run()
    assert best.step.micro_batch == 2 and best.step.accumulation == 4


def test_what_cannot_fit_at_all_is_said() -> None:
    with pytest.raises(UserError, match="no step configuration of this recipe fits"):
        search(make_recipe(), lambda _: 1.0, lambda _: 2000 * MIB).run()


def test_what_fits_once_and_not_again_is_not_taken() -> None:
    recipe, tried = make_recipe(), []

    def peak(step: StepConfig) -> int:
        tried.append(step)
        return (500 if step.micro_batch == 2 and tried.count(step) < 2 else 2000) * MIB

    with pytest.raises(UserError, match="for sure"):
        search(recipe, lambda _: 1.0, peak).run()


def test_compiling_has_to_pay_over_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "what_is_missing", lambda _: None)

    def seconds(step: StepConfig) -> float:
        return 0.5 if step.compile == "blocks" else 1.0

    assert search(make_recipe(max_steps=61, schedule={"warmup_steps": 1}), seconds).run().step.compile == "blocks"
    assert search(make_recipe(max_steps=59, schedule={"warmup_steps": 1}), seconds).run().step.compile == "off"
    found = search(make_recipe(compile="off"), seconds)
    assert found.run().step.compile == "off" and all(trial.step.compile == "off" for trial in found.trials)


def test_captions_are_always_compared_with_as_many() -> None:
    data = {"train": "x", "seq_len": 32}
    recipe = make_recipe(
        data=data, losses={"contrastive": 0.1}, model={"preset": "nano", "vision": {"projection_dim": 8}}
    )
    found = search(recipe, lambda step: 1 / step.micro_batch)
    found.run()
    assert {trial.step.micro_batch for trial in found.trials} == {4}


def test_readers_are_tried_where_media_are_read() -> None:
    recipe = make_recipe()
    best = search(recipe, lambda step: 1 / step.num_workers if step.micro_batch == 4 else 9.0, reads_ahead=True).run()
    assert best.step.num_workers > recipe.data.num_workers
    assert best.step.fragment(StepConfig.of(recipe))["data"] == {"num_workers": best.step.num_workers}


def test_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def seconds(step: StepConfig) -> float:
        now[0] += 10
        return 1 / step.micro_batch

    recipe = make_recipe(batch_size=1, gradient_accumulation_steps=64, tune={"minutes": 1.0})
    found = search(recipe, seconds)
    found.run()
    assert now[0] <= 10 + 60  # the first one prepares the data
    assert len(found.trials) > 3


def test_a_mistake_in_the_recipe_is_told_as_such() -> None:
    def attempt(step: StepConfig, deadline: float) -> Trial:
        return Trial(step, why_not="x: no such file")

    with pytest.raises(UserError, match="x: no such file"):
        Search(make_recipe(), attempt, 1024 * MIB, lambda _: None).run()


def test_several_processes_are_not_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="with several processes nothing is tuned"):
        tune(make_recipe(), tmp_path)


def test_a_run_folder_that_cannot_be_made_is_told_before_anything_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the step")
    with pytest.raises(UserError, match="cannot be written"):
        train(make_recipe(), tmp_path / "file" / "run")


def test_a_worker_that_fails_is_told_with_its_standard_error() -> None:
    with ChildProcess(COMMAND) as child, pytest.raises(ChildEndedError, match="TypeError") as failed:
        child.ask(BROKEN, 60)
    assert failed.value.code == 1
    with ChildProcess(COMMAND) as child, pytest.raises(ChildEndedError, match="in time") as late:
        child.ask(BROKEN, 0.01)
    assert late.value.timed_out


def test_a_codec_is_not_tuned() -> None:
    with pytest.raises(ValueError, match="tune"):
        Recipe.model_validate({"codec": {}, "data": {"train": "x"}, "max_steps": 10, "tune": True})


def test_a_real_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} and {n + 1} are neighbours." for n in range(3000)))
    data = {"train": str(text), "seq_len": 32, "cache_dir": str(tmp_path / "tokens")}
    more = {"tokenizer": {"vocab_size": 384}, "eval": {"every": 0, "max_rows": 2}, "schedule": {"warmup_steps": 1}}
    recipe = make_recipe(data=data, max_steps=2, **more)
    said: list[str] = []
    monkeypatch.setattr("muomni.training.tune.search._print", said.append)
    train(recipe, tmp_path / "tuned")
    trials = read_json(tmp_path / "tuned" / TUNING)["trials"]
    assert len(trials) >= 2 and all(trial["why_not"] is None for trial in trials), trials
    assert any("s/step" in line for line in said) and said[-1].startswith("tuned: ")
    chosen = read_json(tmp_path / "tuned" / TUNED)
    stored = read_json(tmp_path / "tuned" / "recipe.json")
    assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == 8
    assert {key: stored[key] for key in chosen} == chosen
    assert "compile" not in chosen and stored["compile"] == "auto"  # not tried here, so left to the run
    # The same is learnt as without, whatever was chosen; the last step's loss is that of the same rows.
    train(recipe.replace(tune=False), tmp_path / "plain")
    losses = [
        [line["loss"] for line in read_lines(tmp_path / run / "metrics.jsonl") if line["kind"] == "train"]
        for run in ("tuned", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Going on takes what was found, from the user's recipe and from the run's.
    with pytest.raises(UserError, match="is complete"):
        train(recipe, tmp_path / "tuned", resume=True)
    with pytest.raises(UserError, match="is complete"):
        train(Recipe.model_validate(stored), tmp_path / "tuned", resume=True)
    with pytest.raises(UserError, match='begun without "tune"'):
        train(recipe, tmp_path / "plain", resume=True)
    assert json.loads((tmp_path / "tuned" / TUNED).read_text()) == chosen
