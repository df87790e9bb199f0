"""Runs with `compile: "auto"`: bit-equal to runs with the mode that was chosen, also when they are resumed."""

import shutil

import pytest

from muomni.accel.compile import blocks as compilation
from muomni.accel.compile import trial as compile_trial
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train
from muomni.training.trainer import Trainer
from tests.training.test_stage import Stop, assert_same_run

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def trials(monkeypatch):
    """Lets passes seem to take what the test says; counts them."""
    seconds = {"eager": 100.0, "compiled": 10.0, "passes": 0}

    def timed(timer, number):
        timer.one_pass(number)
        timer.model.zero_grad(set_to_none=True)
        seconds["passes"] += 1
        is_compiled = any(m._compiled_call_impl is not None for m in timer.model.modules())
        return seconds["compiled" if is_compiled else "eager"]

    monkeypatch.setattr(compile_trial._Timer, "__call__", timed)
    monkeypatch.setattr(compile_trial, "_TURNS", 1)
    # In eager turns the modules are compiled too, only not used.
    monkeypatch.setattr(compile_trial, "judge", lambda _e, c, _cost, _n: compilation.CompileChoice(
        "blocks" if c[0] < 10 else "off", "as the test says", {"compiled_s": c[0]}))  # fmt: skip
    return seconds


@compiler
@pytest.mark.parametrize(("compiled_s", "mode"), [(1.0, "blocks"), (10.0, "off")])
def test_a_run_that_measures_is_the_run_with_the_mode_it_chose(recipe, tmp_path, trials, compiled_s, mode):
    trials["compiled"] = compiled_s
    train(recipe.replace(compile=mode), tmp_path / "told")
    assert trials["passes"] == 0
    train(recipe.replace(compile="auto"), tmp_path / "measured")
    assert trials["passes"] > 2
    assert_same_run(tmp_path / "told", tmp_path / "measured")
    lines = [x for x in read_lines(tmp_path / "measured/metrics.jsonl") if x["kind"] == "compile"]
    assert [(x["step"], x["mode"], x["compiled_s"]) for x in lines] == [(0, mode, compiled_s)]


@compiler
def test_a_resumed_run_takes_the_decision_it_began_with(recipe, tmp_path, trials, monkeypatch):
    trials["compiled"] = 1.0
    auto = recipe.replace(compile="auto")
    train(auto, tmp_path / "whole")
    after_step = Trainer._after_step

    def dies(self):
        after_step(self)
        if self.progress.applied == 6:
            raise Stop

    monkeypatch.setattr(Trainer, "_after_step", dies)
    with pytest.raises(Stop):
        train(auto, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    # Now it would decide otherwise, and is not asked.
    trials.update(compiled=10.0, passes=0)
    train(auto, tmp_path / "cut", resume=True)
    assert trials["passes"] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_without_a_compiler_the_run_is_eager_and_says_so(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    train(recipe.replace(compile="auto", max_steps=4), tmp_path / "run")
    assert "compile off: no C++ compiler" in " ".join(capfd.readouterr().err.split())


def test_a_short_run_is_not_tried_and_says_so(recipe, tmp_path, capfd):
    monkey = recipe.replace(compile="auto", max_steps=4)
    train(monkey, tmp_path / "run")
    said = " ".join(capfd.readouterr().err.split())
    if shutil.which("g++"):
        assert "compile off: not measured: 8 micro-batches are too few" in said
