"""`muomni train` and `muomni demo` as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def muomni(*args: str | Path, cwd: Path, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MUOMNI_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-m", "muomni", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(f"The cat number {i} sat on mat {i * 7 % 13} and was happy." for i in range(600)))
    return path


SMALL = (
    "--set",
    "tokenizer.vocab_size=400",
    "--set",
    "data.seq_len=32",
    "--set",
    "max_steps=6",
    "--set",
    "schedule.warmup_steps=2",
)


def test_from_text_to_a_reply(stories, tmp_path):
    trained = muomni("train", "text-nano", "--data", stories, *SMALL, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "chat with it: muomni chat runs/text-nano" in trained.stdout
    assert "validation loss" in trained.stderr
    answered = muomni("generate", "runs/text-nano", "The cat", "--raw", "--json", "--max-new-tokens", "5", cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    assert 1 <= len(json.loads(answered.stdout)["tokens"]) <= 5
    again = muomni("train", "text-nano", "--data", stories, *SMALL, cwd=tmp_path)
    assert again.returncode == 2 and "--resume goes on" in again.stderr
    resumed = muomni("train", "runs/text-nano", "--resume", cwd=tmp_path)
    assert resumed.returncode == 2 and "is complete" in resumed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.json", "--data", "stories.txt"], "no recipe 'nothing.json'"),
        (["text-nano"], "data.train"),
        (["text-nano", "--data", "missing.txt"], "--data missing.txt: no such file"),
        (["text-nano", "--data", "stories.txt", "--set", "batch_size=0"], "batch_size = 0"),
        (
            ["text-nano", "--data", "stories.txt", "--set", "gradient_accumulation_steps=0"],
            "gradient_accumulation_steps = 0",
        ),
        (["text-nano", "--data", "stories.txt", "--set", "batchsize=4"], "did you mean"),
        (["text-nano", "--data", "stories.txt", "--set", "model.thinker.num_attention_heads=3"], "num_attention_heads"),
        (["text-nano", "--data", "stories.txt", "--set", "precision=fp16"], "a CPU has no fast fp16"),
        (["text-nano", "--data", "binary.jsonl"], "binary.jsonl"),
        (["text-nano", "--data", "empty.txt"], "empty.txt"),
        (["text-nano", "--data", "stories.txt", "--resume"], "nothing to resume"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(stories, tmp_path, arguments, message):
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty.txt").touch()
    found = muomni("train", *arguments, "--set", "device=cpu", cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "runs").glob("*/step-*")) if (tmp_path / "runs").exists() else True


def test_the_demo_runs_to_its_end_on_a_text_of_ones_own(stories, tmp_path):
    found = muomni("demo", "--data", stories, "--steps", "90", "--out", "runs/mine", cwd=tmp_path)
    assert found.returncode == 0, found.stderr + found.stdout
    report = json.loads((tmp_path / "runs/mine/demo.json").read_text())
    assert report["gain_bits_per_byte"] == pytest.approx(report["bigram_bits_per_byte"] - report["model_bits_per_byte"])
    assert "stopped and saved" in found.stdout and "going on from" in found.stderr
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    refused = muomni("demo", "--data", stories, "--out", "precious", cwd=tmp_path)
    assert refused.returncode == 2 and "no demo made" in refused.stderr
    assert (tmp_path / "precious" / "thesis.txt").exists()
