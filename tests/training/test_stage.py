"""Whole runs: they learn, resume exactly, and never leave a broken checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from muomni.config import Recipe
from muomni.errors import CheckpointError, ConfigError, TrainingError, UserError
from muomni.training import checkpoint as checkpoint_module
from muomni.training.objectives.module import LossModule
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train


def steps_of(run: Path) -> list[tuple]:
    """Everything a step's line says that must not depend on interruptions."""
    lines = read_lines(run / "metrics.jsonl")
    return [(x["step"], x["loss"], x["grad_norm"], x["lr"], x["batch"]) for x in lines if x["kind"] == "train"]


def validations_of(run: Path) -> list[tuple]:
    return [(x["step"], x["loss"]) for x in read_lines(run / "metrics.jsonl") if x["kind"] == "val"]


def tensors_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / name)


def assert_same_run(one: Path, other: Path) -> None:
    assert steps_of(one) == steps_of(other)
    assert validations_of(one) == validations_of(other)
    for name in ("model.safetensors", "training/state.safetensors"):
        a, b = tensors_of(one, name), tensors_of(other, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_a_run_learns_and_leaves_what_it_promises(recipe, tmp_path):
    run = tmp_path / "run"
    result = train(recipe.replace(max_steps=40, optimizer={"lr": 1e-2}), run)
    steps = steps_of(run)
    assert [step for step, *_ in steps] == list(range(1, 41))
    assert steps[-1][1] < steps[0][1] - 1.0
    assert not result.stopped and result.progress.applied == 40
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training"} <= {
        path.name for path in (run / "last").iterdir()
    }
    assert (run / "last").resolve().name == "step-00000040"
    assert json.loads((run / "recipe.json").read_text())["max_steps"] == 40
    assert result.plot is not None and result.plot.read_bytes().startswith(b"\x89PNG")
    best = min(validations_of(run), key=lambda item: item[1])
    assert (run / "best").resolve().name == f"step-{best[0]:08d}"
    assert len(list(run.glob("step-*"))) <= recipe.checkpoint.keep + 1


class Stop(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("killed_at", [1, 4, 5, 7, 11])
def test_a_killed_run_resumes_bit_by_bit(recipe, tmp_path, killed_at, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole)
    from muomni.training.trainer import Trainer

    after_step = Trainer._after_step

    def dies(self):
        after_step(self)
        if self.progress.applied == killed_at:
            raise Stop

    monkeypatch.setattr(Trainer, "_after_step", dies)
    with pytest.raises(Stop):
        train(recipe, cut)
    monkeypatch.undo()
    if (cut / "last").exists():
        torch.rand(7)  # whatever used the global generator in between does not matter
        train(recipe, cut, resume=True)
    else:
        train(recipe, cut)
    assert_same_run(whole, cut)


def test_dropout_and_shuffling_are_part_of_what_resumes(recipe, tmp_path):
    """The comparison above can fail: another seed, or no dropout, gives other losses."""
    runs = {}
    still = {"preset": "nano", "thinker": {"dropout": 0.0, "hidden_size": 32, "intermediate_size": 64}}
    for name, changed in {"a": recipe, "seed": recipe.replace(seed=1), "still": recipe.replace(model=still)}.items():
        train(changed, tmp_path / name)
        runs[name] = steps_of(tmp_path / name)
    assert runs["a"] != runs["seed"]
    assert [x[4] for x in runs["a"]] == [x[4] for x in runs["still"]]
    assert [x[1] for x in runs["a"]] != [x[1] for x in runs["still"]]


def _start(recipe: Recipe, run: Path, folder: Path) -> subprocess.Popen:
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True, by_alias=True)))
    return subprocess.Popen(
        [sys.executable, "-m", "muomni", "train", str(file), "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = read_lines(run / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step and (run / "last").exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run did not get that far in two minutes")


def test_kill_9_of_a_real_process_resumes_bit_by_bit(recipe, tmp_path):
    long = recipe.replace(max_steps=60, checkpoint={"every": 2, "keep": 1}, log_every=1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(long, whole)
    process = _start(long, cut, tmp_path)
    _wait_for_step(cut, 20, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    train(long, cut, resume=True)
    assert_same_run(whole, cut)
    assert not list(cut.glob(".partial-*"))


def test_ctrl_c_saves_and_stops_and_the_run_goes_on(recipe, tmp_path):
    long = recipe.replace(
        max_steps=400, checkpoint={"every": 1000, "keep": 1}, eval={"every": 10, "max_rows": 2}, log_every=1
    )
    run = tmp_path / "run"
    process = _start(long, run, tmp_path)
    _wait_for_step(run, 15, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped and saved" in out and "Traceback" not in err
    stopped_at = json.loads((run / "last/training/state.json").read_text())["progress"]["applied"]
    assert steps_of(run)[-1][0] == stopped_at < 400


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_before_still_loads(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_tensors = checkpoint_module.save_tensors  # type: ignore[attr-defined]

    def full(tensors, path):
        if "step-00000008" in str(path):
            path.write_bytes(b"half of i")
            raise OSError(28, "No space left on device")
        save_tensors(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_tensors", full)
    with pytest.raises(CheckpointError, match=r"step-00000008 could not be written: .*No space left.*step-00000005"):
        train(recipe, run)
    monkeypatch.undo()
    assert not list(run.glob(".partial-*"))
    train(recipe, run, resume=True)
    whole = tmp_path / "whole"
    train(recipe, whole)
    assert_same_run(whole, run)


@pytest.mark.parametrize("name", ["model.safetensors", "training/state.safetensors", "training/state.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_corrupt_checkpoint_is_named_and_an_earlier_one_resumes(recipe, tmp_path, name, how):
    run = tmp_path / "run"
    train(recipe, run)
    file = run / "last" / name
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0x20
        file.write_bytes(bytes(content))
    elif how == "cut":
        file.write_bytes(bytes(content[: len(content) // 2]))
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match="step-00000012.*an earlier one is .*step-"):
        train(recipe, run, resume=True)
    earlier = sorted(run.glob("step-*"))[-2]
    train(recipe, run, resume_from=earlier)
    assert (run / "last").resolve().name == "step-00000012"


@pytest.mark.parametrize(
    "state", ["null", "[" * 100_000, '{"sha256": "x", "progress": {}}', '{"sha256": {}, "progress": 7}']
)
def test_a_checkpoint_whose_state_is_another_is_told(tmp_path, state):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match="does not load"):
        checkpoint_module.read_checkpoint(tmp_path)


def test_a_training_state_of_another_model_is_told():
    for name in ("optimizer/0/exp_avg/none.weight", "optimizer/7/exp_avg/a", "exp_avg"):
        with pytest.raises(CheckpointError, match="is another model's"):
            checkpoint_module.restore_training(
                {"a": torch.nn.Parameter(torch.ones(1))}, [], {name: torch.ones(1)}, checkpoint_module.Progress()
            )


def test_an_existing_run_is_not_overwritten(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run; --resume"):
        train(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="is complete"):
        train(recipe, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        train(recipe, tmp_path / "other", resume=True)


def test_a_changed_recipe_does_not_resume(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="batch_size: 2 became 4"):
        train(recipe.replace(batch_size=4), tmp_path / "run", resume=True)


def test_training_goes_on_from_the_weights_of_a_run(recipe, tmp_path):
    train(recipe.replace(max_steps=30, optimizer={"lr": 1e-2}), tmp_path / "first")
    second = recipe.replace(model={"init_from": str(tmp_path / "first"), "thinker": {"dropout": 0.2}})
    train(second, tmp_path / "second")
    assert steps_of(tmp_path / "second")[0][1] < steps_of(tmp_path / "first")[0][1] - 0.5
    config = json.loads((tmp_path / "second/last/config.json").read_text())
    assert config["thinker"]["dropout"] == 0.2


def test_steps_that_stay_non_finite_end_the_run_with_the_checkpoint_intact(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    forward = LossModule.forward

    def poisoned(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        if self.training and (run / "last").exists():
            out.total = out.total * float("nan")
        return out

    monkeypatch.setattr(LossModule, "forward", poisoned)
    with pytest.raises(TrainingError, match="steps in a row had non-finite gradients, at step 4"):
        train(recipe.replace(max_steps=60), run)
    assert (run / "last").resolve().name == "step-00000004"
    assert all(torch.isfinite(x).all() for x in tensors_of(run, "model.safetensors").values())
    skipped = [x for x in read_lines(run / "metrics.jsonl") if x.get("skipped")]
    assert len(skipped) >= 20


def test_a_skipped_step_is_made_up_for(recipe, tmp_path, monkeypatch):
    """One bad batch costs a batch, not a step: the run still takes all of its optimizer steps."""
    from muomni.training.step import TrainStep

    measure = TrainStep._measure
    calls = []

    def once(self):
        norm, bad = measure(self)
        calls.append(1)
        return (norm * float("nan"), torch.ones_like(bad)) if len(calls) == 5 else (norm, bad)

    monkeypatch.setattr(TrainStep, "_measure", once)
    result = train(recipe, tmp_path / "run")
    assert (result.progress.applied, result.progress.attempts, result.progress.skipped) == (12, 13, 1)
    assert [step for step, *_ in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12]
