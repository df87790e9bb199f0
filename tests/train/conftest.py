"""A small corpus and a recipe that trains in a second."""

import json
import random
from pathlib import Path

import pytest

from muomni.config import Recipe

WORDS = ["the", "a", "small", "big", "red", "old", "cat", "dog", "tree", "house", "sees", "finds", "under", "near"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents of made-up sentences."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(200):
            text = " ".join(draw.choices(WORDS, k=draw.randint(5, 80)))
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture
def recipe(corpus: Path, tmp_path: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"preset": "nano", "thinker": {"dropout": 0.1, "hidden_size": 32, "intermediate_size": 64}},
            "tokenizer": {"vocab_size": 384},
            "data": {"train": str(corpus), "seq_len": 32, "val_fraction": 0.1, "cache_dir": str(tmp_path / "cache")},
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "schedule": {"warmup_steps": 3},
            "eval": {"every": 5, "max_rows": 4},
            "checkpoint": {"every": 4, "keep": 2},
            "log_every": 3,
            "device": "cpu",
            "compile": "off",  # nothing is tried at the start of a run
        }
    )
