"""Whole runs with pictures and sounds: they learn, resume exactly, and name what they cannot read."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from muomni.config import Recipe, parse
from muomni.errors import ConfigError, DataError
from muomni.model import OmniModel
from muomni.train.metrics import read_lines
from muomni.train.run import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
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


def recipe_of(folder: Path, tmp_path: Path, /, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {
            "preset": "nano",
            "thinker": {"dropout": 0.1, "hidden_size": 32, "intermediate_size": 64},
            "vision": TOWER | {"max_tokens": 16, "min_tokens": 4, "contrastive_size": 8},
            "audio": TOWER | {"ctc": True},
        },
        "tokenizer": {"vocab_size": 330},
        "losses": {"ctc": 0.3, "contrastive": 0.2},
        "data": {
            "train": [{"path": str(folder / "train.jsonl"), "weight": 1.5}],
            "val_fraction": 0.15,
            "seq_len": 64,
            "cache_dir": str(tmp_path / "cache"),
            "augment": {
                "image": {"shift": 0.1, "colour": 0.1, "blur": 0.2},
                "audio": {"speed": 0.1, "noise": 0.5, "time_masks": 1, "shift": 0.1},
            },
        },
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "optimizer": {"lr": 5e-3},
        "schedule": {"warmup_steps": 2},
        "eval": {"every": 4, "max_rows": 4},
        "checkpoint": {"every": 3, "keep": 4},
        "log_every": 2,
        "device": "cpu",
        "compile": "off",
    }
    return parse(Recipe, values | changes, "test")


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "training/state.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_a_run_learns_and_logs_every_loss(media: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe_of(media, tmp_path, max_steps=30), run)
    steps = lines_of(run, "train")
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    for name in ("ctc", "contrastive"):
        seen = [line[name] for line in steps if name in line]
        assert seen and all(value is not None and value >= 0 for value in seen)
    validation = lines_of(run, "val")[-1]
    assert {"loss", "ctc", "bits_per_byte"} <= validation.keys()
    assert not lines_of(run, "event")


def test_threads_that_read_ahead_change_nothing(media: Path, tmp_path: Path) -> None:
    data = recipe_of(media, tmp_path).data
    for workers in (0, 3):
        one = recipe_of(media, tmp_path, data=data.replace(workers=workers).model_dump(mode="json"))
        train(one, tmp_path / f"workers{workers}")
    assert_same_weights(tmp_path / "workers0" / "last", tmp_path / "workers3" / "last")


def test_a_run_resumes_bit_by_bit(media: Path, tmp_path: Path) -> None:
    """With dropout, augmentation and shuffling; from a checkpoint in the midst of a run."""
    recipe = recipe_of(media, tmp_path, freeze=["audio_projector"])
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "again")
    final = load_file(tmp_path / "again" / "last" / "model.safetensors")
    train(recipe.replace(max_steps=8), tmp_path / "again", resume_from=tmp_path / "again" / "step-00000003")
    assert_same_weights(tmp_path / "whole" / "last", tmp_path / "again" / "last")
    assert lines_of(tmp_path / "whole", "train") == lines_of(tmp_path / "again", "train")
    first = load_file(tmp_path / "whole" / "step-00000003" / "model.safetensors")
    for name, weight in final.items():
        assert torch.equal(weight, first[name]) == name.startswith("audio_projector"), name


def test_a_rescued_run_ends_where_one_begun_with_the_smaller_micro_batch_ends(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the contrastive loss, which compares the captions of a micro-batch and so depends on its size."""
    alike = {"losses": {"ctc": 0.3}, "eval": {"every": 0}}
    small = {"batch_size": 1, "gradient_accumulation_steps": 4}
    train(recipe_of(media, tmp_path, **alike, **small), tmp_path / "small")
    forward = OmniModel.forward

    def limited(model: OmniModel, input_ids: torch.Tensor, **more: Any) -> Any:
        if model.training and input_ids.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.50 GiB.")
        return forward(model, input_ids, **more)

    monkeypatch.setattr(OmniModel, "forward", limited)
    result = train(recipe_of(media, tmp_path, **alike, on_oom="rescue"), tmp_path / "rescued")
    assert result.progress.micro_batch == 1
    assert lines_of(tmp_path / "small", "train") == lines_of(tmp_path / "rescued", "train")
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("small", "rescued"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def broken(media: Path, folder: Path, count: int) -> Path:
    """The same manifest, with the ends of some pictures cut off: their headers still read."""
    folder.mkdir()
    for path in media.iterdir():
        content = path.read_bytes()
        cut = path.suffix == ".png" and int(path.stem) < count
        (folder / path.name).write_bytes(content[: len(content) - 30] if cut else content)
    return folder


def test_a_broken_picture_is_left_out_and_named_once(media: Path, tmp_path: Path) -> None:
    data = broken(media, tmp_path / "data", 1)
    spec = recipe_of(data, tmp_path).data.replace(max_bad=0.5).model_dump(mode="json")
    result = train(recipe_of(data, tmp_path, data=spec, max_steps=12), tmp_path / "run")
    assert result.progress.applied == 12
    events = [name for line in lines_of(tmp_path / "run", "event") for name in line["names"]]
    assert len(events) == 1 and "0.png" in events[0] and events == result.progress.bad


def test_too_many_broken_pictures_end_the_run(media: Path, tmp_path: Path) -> None:
    data = broken(media, tmp_path / "data", 12)
    with pytest.raises(DataError) as error:
        train(recipe_of(data, tmp_path, max_steps=40), tmp_path / "run")
    for word in ("documents", "data.max_bad", ".png", "muomni data check"):
        assert word in str(error.value)
    assert lines_of(tmp_path / "run", "event")


def test_encoders_are_added_to_a_model_of_text(media: Path, tmp_path: Path) -> None:
    text = recipe_of(media, tmp_path, max_steps=4)
    train(text, tmp_path / "first")
    spec = {"init_from": str(tmp_path / "first"), "audio": {"ctc": True, "dropout": 0.0}}
    more = recipe_of(media, tmp_path, model=spec, freeze=["thinker"], losses={"ctc": 0.1}, max_steps=2)
    train(more, tmp_path / "second", resume=False)
    a, b = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("first", "second"))
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith("thinker"):
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ["audio"], "losses": {"ctc": 0.3}}, "frozen"),
        ({"model": {"vision": {"hidden_size": 32}}}, "init_from"),
        ({"model": {"vision": {"contrastive_size": 8}}, "losses": {"ctc": 0.3}, "data": {"seq_len": 4096}}, "context"),
    ],
)
def test_what_does_not_fit_a_folder_is_said_before_anything_is_made(
    media: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    train(recipe_of(media, tmp_path, max_steps=2, schedule={"warmup_steps": 1}), tmp_path / "first")
    changed = changes | {"model": {"init_from": str(tmp_path / "first")} | changes.get("model", {})}
    if "data" in changes:
        data = recipe_of(media, tmp_path).data.replace(**changes["data"]).model_dump(mode="json")
        changed |= {"data": data}
    with pytest.raises(ConfigError, match=words):
        train(recipe_of(media, tmp_path, **changed), tmp_path / "second")
    assert not (tmp_path / "second").exists()
