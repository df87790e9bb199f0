"""`from muomni import train` runs a recipe from Python, in any thread."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from muomni import load_recipe, train
from muomni.errors import ConfigError

if TYPE_CHECKING:
    from muomni.training.stage import TrainResult


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"{n} and {n} are {2 * n}."}) for n in range(400)))
    return {
        "data": {"train": [text], "seq_len": 32, "cache_dir": tmp_path / "cache"},
        "tokenizer": {"vocab_size": 384},
        "batch_size": 2,
        "max_steps": 4,
        "schedule": {"warmup_steps": 0},
        "eval": {"every": 2, "max_rows": 4, "sample_every": 4, "prompts": ["1 and"], "sample_tokens": 4},
        "compile": "off",
        "log_every": 1,
        "device": "cpu",
    }


def test_a_recipe_is_run_and_resumed(changes: dict[str, Any], tmp_path: Path) -> None:
    result = train("text-nano", tmp_path / "run", **changes)
    assert result.run == tmp_path / "run" and result.progress.applied == 4 and not result.stopped
    assert [line["step"] for line in result.metrics("train")] == [1, 2, 3, 4]
    assert [line["prompt"] for line in result.metrics("sample")] == ["1 and"]
    assert result.metrics("val")[-1]["loss"] < result.metrics("train")[0]["loss"]
    assert {line["kind"] for line in result.metrics()} == {"train", "speed", "val", "sample"}
    assert result.memory.reading.peak > 0 and result.plot is not None
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    # Objects are merged: the recipe's other values stay.
    bundled = load_recipe("text-nano", ["data.train=x.txt"])
    assert stored["optimizer"]["lr"] == bundled.optimizer.lr and stored["max_steps"] == 4
    with pytest.raises(ConfigError, match="another recipe"):
        train(tmp_path / "run", resume=True, seed=5)


def test_a_recipe_object_runs_in_a_thread_and_equals_the_run_of_the_main_one(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = load_recipe("text-nano", [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()])
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(train(recipe, tmp_path / "thread", max_steps=3)))
    thread.start()
    thread.join()
    main = train(recipe, tmp_path / "main", max_steps=3)
    assert results[0].metrics("train") == main.metrics("train") and len(main.metrics("train")) == 3


def test_the_names_load_without_torch() -> None:
    code = (
        "import sys; from muomni import train, load_recipe; assert callable(train); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
