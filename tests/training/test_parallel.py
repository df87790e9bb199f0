"""Two processes learn what one learns, from the same rows, and go on from each other's checkpoints."""

import functools
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from muomni.accel.distributed import Group, ParallelChoice, alone, choose
from muomni.accel.execution_plan import make_plan
from muomni.accel.step_config import StepConfig
from muomni.config import Recipe, preset
from muomni.config.codec import codec_preset
from muomni.errors import ConfigError
from muomni.formats.codec import save_codec
from muomni.model.codec import SpeechCodec
from muomni.training.oom_recovery import RecoveringStep
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train

# The tests are no package (--import-mode=importlib), so what the processes run is put in reach by hand.
_SPEC = importlib.util.spec_from_file_location("train_processes", Path(__file__).with_name("processes.py"))
assert _SPEC is not None and _SPEC.loader is not None
processes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(processes)

REPOSITORY = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


@dataclass
class Pair:
    """What the jobs left: `runs` holds the run folders, `found[job][rank]` what a process said."""

    runs: Path
    found: dict[str, list[dict[str, Any]]]


def make_recipe(corpus: Path, cache: Path, dropout: float, **more: Any) -> dict[str, Any]:
    thinker = {"dropout": dropout, "hidden_size": 32, "intermediate_size": 64}
    return {
        "model": {"preset": "nano", "thinker": thinker},
        "tokenizer": {"vocab_size": 384},
        "data": {"train": str(corpus), "seq_len": 32, "val_fraction": 0.1, "cache_dir": str(cache)},
        "batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 6,
        "schedule": {"warmup_steps": 2},
        "eval": {"every": 3, "max_rows": 5, "sample_every": 3},
        "checkpoint": {"every": 3, "keep": 2},
        "log_every": 2,
        "device": "cpu",
        "precision": "fp32",
        "compile": "off",
        "max_grad_norm": 0.3,
    } | more


def media_recipe(media: Path, cache: Path) -> dict[str, Any]:
    """Pictures, sounds and text; rows in micro-batches of one, so that both ways compare the same captions."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    made = make_recipe(media / "train.jsonl", cache, 0.0, batch_size=1, freeze=["audio_projector"])
    made["model"] |= {
        "vision": sizes | {"max_tokens": 16, "min_tokens": 4, "projection_dim": 8},
        "audio": sizes | {"ctc": True},
    }
    return made | {
        "data": made["data"] | {"seq_len": 64, "num_workers": 0},
        "losses": {"ctc": 0.3, "contrastive": 0.2},
        # Some of an encoder's gradients are nearly zero: with a smaller eps AdamW makes a whole step of their rounding.
        "optimizer": made.get("optimizer", {}) | {"eps": 1e-4},
        "eval": {"every": 3, "max_rows": 5},
    }


def speech_recipes(corpus: Path, runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pairs of text and speech alone, and beside rows of text; `runs` holds the codec and a model that reads."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "text_size": 24, "text_layers": 1, "depth_size": 24}
    drawn = {"code_corruption": 0.0, "conditioning_dropout": 0.0}  # each process draws its own
    made = make_recipe(corpus, runs / "cache", 0.0)
    # As for media: with a smaller eps AdamW makes a whole step of some gradients' rounding.
    made |= {"optimizer": {"eps": 1e-4}, "eval": {"every": 3, "max_rows": 5}, "losses": {"speech": 0.5}}
    made["model"] = {"init_from": str(runs / "one"), "talker": {"codec": str(runs / "codec")} | sizes | drawn}
    speech = {"train": "16-anna-ben", "val_fraction": 0.2}
    beside = made | {"data": made["data"] | {"speech": speech}}
    return made | {"data": {"speech": speech}, "losses": {"text": 0, "speech": 1}, "freeze": ["thinker"]}, beside


@pytest.fixture(scope="module")
def pair(corpus: Path, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One pair of processes does all jobs: starting it takes longer than they do."""
    runs = tmp_path_factory.mktemp("runs")
    plain = make_recipe(corpus, runs / "cache", 0.0)
    muon = plain | {"optimizer": {"name": "muon"}}
    dropped = make_recipe(corpus, runs / "cache", 0.1)
    train(Recipe.model_validate(plain), runs / "one", make_sampler=processes.make_sampler)
    train(Recipe.model_validate(muon), runs / "one-muon", make_sampler=processes.make_sampler)
    shows = media_recipe(media, runs / "cache")
    train(Recipe.model_validate(shows), runs / "one-media")
    (runs / "codec").mkdir()
    save_codec(SpeechCodec(codec_preset("nano"), torch.Generator().manual_seed(1)), runs / "codec")
    speaks, both_learn = speech_recipes(corpus, runs)
    for name, recipe in (("one-speaks", speaks), ("one-both", both_learn)):
        processes.train_job(0, {"recipe": recipe, "run": str(runs / name), "makes_pairs": True})
    shutil.copytree(runs / "one", runs / "one-then-two", symlinks=True)
    middle = str(runs / "one-then-two/step-00000003")
    jobs: dict[str, dict[str, Any]] = {
        "step-ddp": {"kind": "ddp", "optimizer": "adamw"},
        "step-fsdp": {"kind": "fsdp", "optimizer": "adamw"},
        "step-fsdp-muon": {"kind": "fsdp", "optimizer": "muon"},
        "ddp": {"recipe": plain},
        "fsdp": {"recipe": plain | {"parallel": "fsdp", "gradient_checkpointing": "selective"}},
        "muon": {"recipe": muon | {"parallel": "fsdp"}},
        "media-ddp": {"recipe": shows},
        "media-fsdp": {"recipe": shows | {"parallel": "fsdp"}},
        "speaks-ddp": {"recipe": speaks, "makes_pairs": True},
        "speaks-fsdp": {"recipe": speaks | {"parallel": "fsdp"}, "makes_pairs": True},
        "both-ddp": {"recipe": both_learn, "makes_pairs": True},
        "both-fsdp": {"recipe": both_learn | {"parallel": "fsdp"}, "makes_pairs": True},
        "one-then-two": {"recipe": plain | {"parallel": "fsdp"}, "resume_from": middle},
        "dropout": {"recipe": dropped},
        "dropout-again": {"recipe": dropped, "resume_from": str(runs / "dropout-again/step-00000003")}
        | {"copy": str(runs / "dropout")},
        "stopped": {"recipe": plain, "at": ["signal", 2]},
        "died": {"recipe": plain, "at": ["die", 5]},
    }
    for name, job in jobs.items():
        job |= {"kind": job.get("kind", "train"), "run": str(runs / name), "out": str(runs / f"{name}.found")}
        job["port"] = free_port()
    (runs / "jobs.json").write_text(json.dumps(list(jobs.values())))
    script, environment = (
        Path(str(processes.__file__)),
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    both = [
        subprocess.Popen(
            [sys.executable, script, str(rank), runs / "jobs.json"], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=150)[1].decode() for process in both]
    except subprocess.TimeoutExpired:  # one has ended, and the other waits for it
        for process in both:
            process.kill()
        pytest.fail("\n".join(process.communicate()[1].decode()[-2000:] for process in both))
    assert [process.returncode for process in both] == [0, 7], said
    found = {
        name: [
            json.loads(path.read_text()) for rank in range(2) if (path := runs / f"{name}.found-{rank}.json").exists()
        ]
        for name in jobs
    }
    return Pair(runs, found)


def free_port() -> int:
    """Below those that the system gives to other tests' servers and connections before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def lines_of(run: Path, kind: str, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in keys) for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def assert_equal_tensors(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rtol: float, atol: float
) -> None:
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[key], rtol=rtol, atol=atol, msg=functools.partial("{}: {}".format, key)
        )


def assert_close_runs(one: Path, other: Path) -> None:
    """The same rows in the same steps, and figures, weights and optimizer state within rounding of fp32."""
    assert lines_of(one, "train", "step", "batch") == lines_of(other, "train", "step", "batch")
    assert lines_of(one, "speed", "step", "tokens") == lines_of(other, "speed", "step", "tokens")
    assert lines_of(one, "sample", "step", "text") == lines_of(other, "sample", "step", "text")
    for kind, keys in (("train", ("loss", "grad_norm", "lr")), ("val", ("loss", "bits_per_byte", "targets"))):
        a, b = lines_of(one, kind, *keys), lines_of(other, kind, *keys)
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-7)
    for name in ("model.safetensors", "training/state.safetensors"):
        files = (load_file(run / "last" / name) for run in (one, other))
        left, right = ({key: value for key, value in x.items() if not key.startswith("rng/")} for x in files)
        assert_equal_tensors(left, right, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("job", "optimizer"), [("step-ddp", "adamw"), ("step-fsdp", "adamw"), ("step-fsdp-muon", "muon")]
)
def test_two_processes_take_the_steps_of_one(pair, job, optimizer):
    """In fp64, four micro-batches or two times two, with most targets in the rows of one process."""
    steps, weights = processes.learn(alone(), optimizer)
    found = torch.load(pair.runs / f"{job}.found-0.pt")
    # The loss is added up in fp32.
    for (loss, norm), (found_loss, found_norm) in zip(steps, pair.found[job][0]["steps"], strict=True):
        assert found_loss == pytest.approx(loss, rel=1e-6) and found_norm == pytest.approx(norm, rel=1e-9)
    assert weights.keys() == found.keys()
    tolerance = 1e-9 if optimizer == "adamw" else 1e-5  # Muon's iterations are in fp32
    assert all((weights[name] - found[name]).abs().max() < tolerance for name in weights)
    assert pair.found[job][1]["steps"] == pair.found[job][0]["steps"]


@pytest.mark.parametrize("job", ["ddp", "fsdp", "muon"])
def test_a_run_of_two_processes_is_that_of_one(pair, job):
    assert pair.found[job] == [{"applied": 6, "stopped": False, "main": rank == 0} for rank in range(2)]
    assert_close_runs(pair.runs / ("one-muon" if job == "muon" else "one"), pair.runs / job)


@pytest.mark.parametrize("job", ["media-ddp", "media-fsdp"])
def test_two_processes_see_and_hear_what_one_does(pair, job):
    """Some micro-batches hold no pictures or no sounds, so an encoder is at work in one process only."""
    assert pair.found[job] == [{"applied": 6, "stopped": False, "main": rank == 0} for rank in range(2)]
    one, two = (read_lines(pair.runs / run / "metrics.jsonl") for run in ("one-media", job))
    assert_close_runs(pair.runs / "one-media", pair.runs / job)
    for a, b in zip(one, two, strict=True):
        for name in ("ctc", "contrastive"):
            assert (name in a) == (name in b)
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=1e-4)
    assert sum("ctc" in line for line in one) > 2 and sum("contrastive" in line for line in one) > 2


@pytest.mark.parametrize("job", ["speaks-ddp", "speaks-fsdp", "both-ddp", "both-fsdp"])
def test_two_processes_speak_as_one_does(pair, job):
    """Pairs alone, where the text is not computed, and beside rows of text."""
    assert pair.found[job] == [{"applied": 6, "stopped": False, "main": rank == 0} for rank in range(2)]
    one = pair.runs / f"one-{job.partition('-')[0]}"
    keys = ("step", "batch", "frames", "speech", "grad_norm")
    found = zip(lines_of(one, "train", *keys), lines_of(pair.runs / job, "train", *keys), strict=True)
    for a, b in found:
        assert a[:3] == b[:3]
        assert a[3:] == pytest.approx(b[3:], rel=1e-4)
    losses = ("speech", "speech_codes", "speech_moves")
    (a, b), (c, d) = lines_of(one, "val", *losses), lines_of(pair.runs / job, "val", *losses)
    assert (*a, *b) == pytest.approx((*c, *d), rel=1e-4)
    left, right = (load_file(run / "last/model.safetensors") for run in (one, pair.runs / job))
    assert_equal_tensors(left, right, rtol=1e-3, atol=1e-5)


def test_two_processes_go_on_from_the_checkpoint_of_one(pair):
    run = pair.runs / "one-then-two"
    assert "rng/1/cpu" in load_file(run / "last/training/state.safetensors")  # so they did write it
    assert_close_runs(pair.runs / "one", run)


@pytest.mark.parametrize("job", ["ddp", "fsdp"])
def test_one_process_goes_on_from_the_checkpoint_of_two(pair, job, corpus, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair.runs / job, run, symlinks=True)
    recipe = make_recipe(corpus, pair.runs / "cache", 0.0)
    if job == "fsdp":
        recipe["gradient_checkpointing"] = "selective"
    sampler = processes.make_sampler
    train(Recipe.model_validate(recipe), run, resume_from=run / "step-00000003", make_sampler=sampler)
    assert "rng/1/cpu" not in load_file(run / "last/training/state.safetensors")
    assert_close_runs(pair.runs / "one", run)


def test_with_dropout_each_process_draws_for_itself_and_resumes_bit_by_bit(pair):
    whole, again = pair.runs / "dropout", pair.runs / "dropout-again"
    for name in ("model.safetensors", "training/state.safetensors"):
        a, b = load_file(whole / "last" / name), load_file(again / "last" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert lines_of(whole, "train", "step", "loss", "batch") == lines_of(again, "train", "step", "loss", "batch")
    assert not torch.equal(a["rng/cpu"], a["rng/1/cpu"])


def test_a_signal_to_one_stops_both_at_the_same_step_and_saves(pair):
    assert [found["applied"] for found in pair.found["stopped"]] == [2, 2]
    assert all(found["stopped"] for found in pair.found["stopped"])
    assert (pair.runs / "stopped/last").resolve().name == "step-00000002"


def test_a_process_that_dies_ends_the_other_with_the_last_checkpoint_intact(pair):
    (survivor,) = pair.found["died"]
    assert survivor["error"] == "TrainingError" and "another process" in survivor["text"]
    assert (pair.runs / "died/last").resolve().name == "step-00000003"


@given(
    size=st.integers(1, 5),
    share=st.integers(1, 9),
    micro_batch=st.integers(1, 12),
    step=st.integers(0, 3),
)
def test_the_rows_of_a_step_are_shared_without_overlap(size, share, micro_batch, step):
    rows = share * size
    taken: list[int] = []

    def batch(first: int, count: int, stride: int) -> int:
        taken.extend(range(first, first + count * stride, stride))
        return count

    sizes: list[Any] = []
    model: Any = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    for rank in range(size):
        cutter = RecoveringStep(
            StepConfig(micro_batch=rows),
            None,
            False,
            model,
            cast("Any", SimpleNamespace)(optimizers=[], group=Group(ParallelChoice("off", "test", rank, size, rank))),
            cast("Any", SimpleNamespace)(batch=batch),
            Path(),
            micro_batch,
        )
        sizes.append(cutter._cut(step * rows))
    assert sorted(taken) == list(range(step * rows, (step + 1) * rows))
    # The same number of passes everywhere, or FSDP's processes would wait for one another.
    assert all(cut == sizes[0] for cut in sizes) and max(sizes[0]) <= micro_batch


@pytest.mark.parametrize(
    ("processes", "changes", "message"),
    [
        (1, {"parallel": "ddp"}, "there is one process"),
        (1, {"parallel": "fsdp"}, "torchrun --nproc-per-node"),
        (2, {"parallel": "off"}, "torchrun started 2 processes"),
        (3, {}, "8 rows a step cannot be shared evenly by 3"),
        (2, {"on_oom": "shrink_micro_batch"}, "works with one process only"),
        (2, {"parallel": "fsdp", "compile": "full"}, 'say "blocks"'),
    ],
)
def test_bad_combinations_are_refused_by_the_plan(corpus, tmp_path, monkeypatch, processes, changes, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=message):
        make_plan(Recipe.model_validate(make_recipe(corpus, tmp_path, 0.0, **changes)), preset("nano"))


def test_without_a_rank_torchrun_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun sets it"):
        choose("auto", CPU, StepConfig(micro_batch=8), shrinks=False)
