"""A small corpus and a recipe that trains in a second."""

import json
import random
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muomni.config import Recipe

WORDS = ["the", "a", "small", "big", "red", "old", "cat", "dog", "tree", "house", "sees", "finds", "under", "near"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


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


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of one colour, twelve tones, and some text."""
    folder = tmp_path_factory.mktemp("media")
    draw = np.random.default_rng(0)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(24):
            name = list(COLOURS)[number % 3]
            Image.new("RGB", (20 + number, 24), COLOURS[name]).save(folder / f"{number}.png")
            picture = {"type": "image", "image": f"{number}.png", "caption": name}
            write(file, [picture, {"type": "text", "text": "colour?"}], name)
        for number in range(12):
            tone = np.sin(np.arange(3200 + 400 * number) * (0.05 if number % 2 else 0.4))
            with wave.open(str(folder / f"{number}.wav"), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes((tone * 8000 + draw.normal(0, 50, len(tone))).astype("<i2").tobytes())
            name = "low" if number % 2 else "high"
            write(file, [{"type": "audio", "audio": f"{number}.wav", "transcript": name}], name)
            write(file, "say it", " ".join(draw.choice(["a", "bird", "sings", "red"], 5)))
    return folder


def write(file: Any, content: object, answer: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    file.write(json.dumps({"messages": messages}) + "\n")
