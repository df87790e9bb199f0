"""One writer a folder, and only the same run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from muomni import train
from muomni.errors import CheckpointError, ConfigError, TrainingError, UserError
from muomni.files import follow, link_atomic
from muomni.training.reporting.metrics_log import METRICS, MetricsLog, read_lines
from muomni.training.run_folder import only_writer


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, Any]:
    return {
        "data": {"train": [write_text(tmp_path / "text.jsonl")], "seq_len": 32},
        "tokenizer": {"vocab_size": 320},
        "model": {"thinker": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}},
        "max_steps": 4,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "schedule": {"warmup_steps": 0},
        "checkpoint": {"every": 2},
        "eval": {"every": 0, "sample_every": 0},
        "compile": "off",
    }


def write_text(path: Path, word: str = "and") -> str:
    path.write_text("".join(json.dumps({"text": f"{n} {word} {n} are {2 * n}."}) + "\n" for n in range(200)))
    return str(path)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(follow(run / "last") / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_process_writes_into_a_run(changes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with only_writer(run):
        command = [sys.executable, "-m", "muomni", "train", "text-nano", "--data", changes["data"]["train"][0]]
        done = subprocess.run([*command, "--out", str(run)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"process {os.getpid()} on" in done.stderr
    assert not run.exists()  # nothing came into it
    with only_writer(run):
        (run / "x").touch()
    assert {path.name for path in run.iterdir()} == {".lock", "x"}


def test_other_data_are_refused_and_the_same_elsewhere_go_on(changes: dict[str, Any], tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "text.jsonl"
    train("text-nano", run, **changes)
    half = run / "step-00000002"
    write_text(text, "plus")
    with pytest.raises(ConfigError, match="data are not what they were"):
        train(run, resume_from=half)
    assert train(run, resume_from=half, allow_changed=True).progress.applied == 4
    text.unlink()
    shutil.rmtree(run)
    train("text-nano", run, **changes | {"data": {**changes["data"], "train": [write_text(tmp_path / "first.jsonl")]}})
    expected = weights(run)
    moved: dict[str, Any] = {"data": {"train": [write_text(tmp_path / "elsewhere.jsonl")]}}
    train(run, resume_from=half, **moved)
    assert same(weights(run), expected)
    with pytest.raises(ConfigError, match=r"seed: 0 became 3"):
        train(run, resume_from=half, seed=3, **moved)


def test_the_rate_may_change_and_is_said(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train("text-nano", run, **changes)
    resumed = train(run, resume_from=run / "step-00000002", optimizer={"lr": 1e-5})
    assert resumed.progress.applied == 4
    assert "optimizer.lr: " in capsys.readouterr().err


def test_links_that_became_folders_or_cannot_be_made(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, copied, unlinked = tmp_path / "whole", tmp_path / "copied", tmp_path / "unlinked"
    train("text-nano", whole, **changes)
    shutil.copytree(whole, copied)  # links become folders
    shutil.rmtree(copied / "last")
    (copied / "step-00000002").rename(copied / "last")
    shutil.copytree(whole, unlinked, symlinks=True)
    link_atomic(unlinked / "last", "step-00000002")
    for run in (copied, unlinked):
        shutil.rmtree(run / "step-00000004")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(1, "Operation not permitted")

    for run in (copied, unlinked):
        with monkeypatch.context() as patch:
            if run is unlinked:
                patch.setattr(Path, "symlink_to", refuse)
            train(run, resume=True)
        assert same(weights(run), weights(whole))
        assert (run / "last").is_symlink() == (run is copied)
        assert follow(run / "last").resolve().name == "step-00000004"


def test_a_link_is_replaced_whatever_it_was(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "file").touch()
    link_atomic(tmp_path / "last", "one")
    assert follow(tmp_path / "last").resolve() == tmp_path / "one"


def test_a_run_whose_reader_is_gone_or_whose_terminal_closes_is_saved(changes: dict[str, Any], tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"extends": "text-nano", **changes, "max_steps": 100_000, "log_every": 1}))
    command = [sys.executable, "-m", "muomni", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.stderr.close()  # as `| head` does
    before = len(read_lines(run / METRICS))
    while len(read_lines(run / METRICS)) < before + 20:
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 130
    progress = json.loads((run / "last" / "training" / "state.json").read_text())["progress"]
    assert progress["applied"] == max(line["step"] for line in read_lines(run / METRICS))


def test_metrics_outlive_a_full_disk_and_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsLog(tmp_path, 0, 0, tensorboard=False) as log:
        log.write("sample", 1, text="a\u0085b\u2028c\u2029d \ud800")
        assert log.flush() is None
        log.write("train", 2, loss=1.0)
        (tmp_path / METRICS).chmod(0o400)
        opened = Path.open

        def full(path: Path, *args: Any, **kwargs: Any) -> Any:
            file = opened(path, *args, **kwargs)
            file.seek(0, os.SEEK_END)
            file.write(b'{"kind": "tr')
            file.close()
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            assert "No space left" in str(log.flush())
        log.write("train", 3, loss=2.0)
    lines = read_lines(tmp_path / METRICS)
    assert [(line["kind"], line["step"]) for line in lines] == [("sample", 1), ("train", 2), ("train", 3)]
    assert lines[0]["text"] == "a\u0085b\u2028c\u2029d \ud800"
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b"\xff\n[1]\n" + b'{"kind": "val", "step": 4}\n{"kin')
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1, 2, 3, 4]


def test_what_cannot_work_is_said_before_the_run(changes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    epochs = {key: value for key, value in changes.items() if key != "max_steps"}
    epochs |= {"max_steps": None, "epochs": 0.01, "schedule": {"warmup_steps": 50}}
    with pytest.raises(ConfigError, match=r"schedule.warmup_steps = 50: the run has \d steps"):
        train("text-nano", run, **epochs)
    for prompt in ("", "and " * 300):
        with pytest.raises(ConfigError, match=r"eval.prompts.0: has \d+ tokens"):
            train("text-nano", run, **changes | {"eval": {"every": 0, "sample_every": 2, "prompts": [prompt]}})
    assert not run.exists()


def test_a_state_of_another_version_is_one_error(changes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("text-nano", run, **changes)
    state = run / "step-00000002" / "training" / "state.json"
    values = json.loads(state.read_text())
    values["progress"]["unheard_of"] = 1
    state.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="unheard_of"):
        train(run, resume_from=run / "step-00000002")


def test_after_a_divergence_only_what_is_there_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="There is no checkpoint"):
        train("text-nano", run, **changes | {"max_steps": 60, "optimizer": {"lr": 1e30}, "checkpoint": {"every": 50}})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_error(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        train("text-nano", tmp_path / "locked" / "run", **changes)
