"""Whole runs with pictures and sounds: they learn, resume exactly, and name what they cannot read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from muomni.config import Recipe, parse
from muomni.data import Batch
from muomni.errors import ConfigError, DataError
from muomni.model.thinker import Thinker
from muomni.training.objectives.module import LossModule
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.stage import train

ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "dropout": 0.1}


def recipe_of(folder: Path, tmp_path: Path, /, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {
            "preset": "nano",
            "thinker": {"dropout": 0.1, "hidden_size": 32, "intermediate_size": 64},
            "vision": ENCODER | {"max_tokens": 16, "min_tokens": 4, "projection_dim": 8},
            "audio": ENCODER | {"ctc": True},
        },
        "tokenizer": {"vocab_size": 330},
        "losses": {"ctc": 0.3, "contrastive": 0.2},
        "data": {
            "train": [{"path": str(folder / "train.jsonl"), "weight": 1.5}],
            "val_fraction": 0.15,
            "seq_len": 64,
            "cache_dir": str(tmp_path / "cache"),
            "augment": {
                "image": {"shift": 0.1, "color_jitter": 0.1, "blur": 0.2},
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
        one = recipe_of(media, tmp_path, data=data.replace(num_workers=workers).model_dump(mode="json"))
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
    forward = LossModule.forward

    def limited(losses: LossModule, batch: Batch, *more: Any) -> Any:
        if losses.training and batch.input_ids.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.50 GiB.")
        return forward(losses, batch, *more)

    monkeypatch.setattr(LossModule, "forward", limited)
    result = train(recipe_of(media, tmp_path, **alike, on_oom="shrink_micro_batch"), tmp_path / "rescued")
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
    spec = recipe_of(data, tmp_path).data.replace(max_unreadable_fraction=0.5).model_dump(mode="json")
    result = train(recipe_of(data, tmp_path, data=spec, max_steps=12), tmp_path / "run")
    assert result.progress.applied == 12
    events = [name for line in lines_of(tmp_path / "run", "event") for name in line["names"]]
    assert len(events) == 1 and "0.png" in events[0] and events == result.progress.bad


def test_documents_that_share_a_broken_picture_count_each(media: Path, tmp_path: Path) -> None:
    data = broken(media, tmp_path / "data", 1)
    manifest = data / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().split("\n") if line]
    shared = next(row for row in rows if '"0.png"' in json.dumps(row))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *[shared] * len(rows))))
    spec = recipe_of(data, tmp_path).data.replace(max_unreadable_fraction=0.3).model_dump(mode="json")
    with pytest.raises(DataError, match=r"the media of \d\d of \d+ documents cannot be read"):
        train(recipe_of(data, tmp_path, data=spec, max_steps=60), tmp_path / "run")


def test_too_many_broken_pictures_end_the_run(media: Path, tmp_path: Path) -> None:
    data = broken(media, tmp_path / "data", 12)
    with pytest.raises(DataError) as error:
        train(recipe_of(data, tmp_path, max_steps=40), tmp_path / "run")
    for word in ("documents", "data.max_unreadable_fraction", ".png", "muomni data check"):
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
        ({"model": {"vision": {"projection_dim": 8}}, "losses": {"ctc": 0.3}, "data": {"seq_len": 4096}}, "context"),
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


ALONE = {"losses": {"text": 0.0, "contrastive": 1.0}, "freeze": ["thinker", "vision_projector"]}
SEES = {"preset": "nano", "vision": ENCODER | {"max_tokens": 16, "min_tokens": 4, "projection_dim": 8}}


def only_pictures(media: Path, captions: bool = True) -> list[dict[str, str]]:
    """The rows of the manifest that show a picture, in a file of their own; the captions left out where asked for."""
    lines = [line for line in (media / "train.jsonl").read_text().splitlines() if '"image"' in line]
    name = media / f"pictures{captions}.jsonl"
    name.write_text("\n".join(line if captions else line.replace('"caption"', '"name"') for line in lines))
    return [{"path": str(name)}]


def alone(media: Path, tmp_path: Path, captions: bool = True, **more: Any) -> Recipe:
    data = recipe_of(media, tmp_path).data.model_dump(mode="json")
    data |= {"train": only_pictures(media), "val": only_pictures(media, captions), "augment": {}}
    return recipe_of(media, tmp_path, model=SEES, data=data, **(ALONE | more))


def test_an_encoder_learns_by_its_own_loss_alone(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Thinker is computed in validation only; the best checkpoint has least of what is learnt."""
    asked: list[bool] = []
    forward = Thinker.forward

    def counted(thinker: Thinker, *args: Any, **more: Any) -> Any:
        asked.append(torch.is_grad_enabled())
        return forward(thinker, *args, **more)

    monkeypatch.setattr(Thinker, "forward", counted)
    run = tmp_path / "run"
    result = train(alone(media, tmp_path, max_steps=16), run)
    assert asked and not any(asked)
    assert not any("loss" in line for line in lines_of(run, "train"))
    steps = [line["contrastive"] for line in lines_of(run, "train") if "contrastive" in line]
    assert sum(steps[-4:]) < sum(steps[:4])
    checked = {line["step"]: line["contrastive"] for line in lines_of(run, "val")}
    assert result.progress.best_loss == min(checked.values()) == checked[result.progress.best_step]
    assert result.plot is not None and result.plot.stat().st_size > 1000
    first, last = (load_file(run / name / "model.safetensors") for name in ("step-00000012", "last"))
    for name, weight in last.items():
        assert torch.equal(weight, first[name]) != name.startswith(("vision.", "vision_head.")), name


def test_without_captions_in_validation_nothing_is_best(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(alone(media, tmp_path, captions=False), tmp_path / "run")
    assert (result.progress.best_loss, result.progress.best_step) == (None, None)
    assert not (tmp_path / "run" / "best").exists() and (tmp_path / "run" / "last").exists()
    assert capsys.readouterr().err.count("no checkpoint counts as best") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ["thinker"]}, "no loss trains vision_projector"),
        ({"freeze": []}, "no loss trains thinker, vision_projector: give this one a weight, or add them to freeze"),
        ({"losses": {"text": 0.0}}, "no loss trains vision: give this one a weight, or add them to freeze"),
        ({"losses": {"text": 0.0, "ctc": 1.0}}, "losses.text|losses.ctc"),
    ],
)
def test_without_the_text_all_that_learns_needs_a_loss(
    media: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        alone(media, tmp_path, **changes)


def test_the_digest_of_a_step_covers_its_media(media: Path, tmp_path: Path) -> None:
    """Other pixels under the same names and captions, nothing else changed."""
    other = tmp_path / "other"
    other.mkdir()
    for path in media.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as picture:
                ImageOps.invert(picture).save(other / path.name)
        else:
            (other / path.name).write_bytes(path.read_bytes())
    plain = {"augment": {}, "num_workers": 0}
    digests = []
    for n, folder in enumerate((media, media, other)):
        data = recipe_of(folder, tmp_path).data.model_dump(mode="json") | plain | {"val": only_pictures(folder)}
        train(recipe_of(folder, tmp_path, data=data, max_steps=3, eval={"every": 0}), tmp_path / str(n))
        digests.append([line["batch"] for line in lines_of(tmp_path / str(n), "train")])
    assert digests[0] == digests[1]
    assert all(one != another for one, another in zip(digests[0], digests[2], strict=True))
