"""`muomni train` and `muomni demo` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
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


def test_from_text_to_a_reply(muomni, stories, tmp_path):
    command = [sys.executable, "-m", "muomni", "train", "text-nano", "--data", str(stories), *SMALL]
    trained = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert trained.returncode == 0, trained.stderr
    assert "chat with it: muomni chat runs/text-nano" in trained.stdout
    assert "validation loss" in trained.stderr
    answered = muomni("generate", "runs/text-nano", "The cat", "--raw", "--json", "--max-new-tokens", "5")
    assert answered.code == 0, answered.err
    assert 1 <= len(json.loads(answered.out)["tokens"]) <= 5
    again = muomni("train", "text-nano", "--data", stories, *SMALL)
    assert again.code == 2 and "--resume goes on" in again.err
    resumed = muomni("train", "runs/text-nano", "--resume")
    assert resumed.code == 2 and "is complete" in resumed.err


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
@pytest.mark.usefixtures("stories")
def test_a_mistake_is_one_clear_line_and_exit_code_2(muomni, tmp_path, arguments, message):
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty.txt").touch()
    code, _, err = muomni("train", *arguments, "--set", "device=cpu")
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*/step-*")) if (tmp_path / "runs").exists() else True


def test_the_demo_runs_to_its_end_on_a_text_of_ones_own(muomni, stories, tmp_path):
    """Both trainings are processes of their own, as a person would start and stop them."""
    code, out, err = muomni("demo", "--data", stories, "--steps", "40", "--out", "runs/mine")
    assert code == 0, err + out
    report = json.loads((tmp_path / "runs/mine/demo.json").read_text())
    assert report["gain_bits_per_byte"] == pytest.approx(report["bigram_bits_per_byte"] - report["model_bits_per_byte"])
    assert "stopped and saved" in out and "going on from" in err
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    refused = muomni("demo", "--data", stories, "--out", "precious")
    assert refused.code == 2 and "no demo made" in refused.err
    assert (tmp_path / "precious" / "thesis.txt").exists()
