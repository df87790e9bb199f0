"""The stage that trains a codec: it learns, resumes bit by bit, and does not depend on the cut into micro-batches."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from muomni.config import Recipe, load_recipe, parse
from muomni.config.loader import merge
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.formats.codec import load_codec
from muomni.training.codec.discriminator import Discriminator, codec_losses, critic_loss
from muomni.training.codec.task import CodecTask
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.resolve import resolve_codec
from muomni.training.stage import train


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones that rise, of different pitch, 3 s in all."""
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(16_000) / 16_000
    for n in range(3):
        wave = np.sin(2 * np.pi * (200 + 150 * n + 100 * time) * time) * np.sin(np.pi * time) ** 2
        soundfile.write(folder / f"{n}.wav", 0.5 * wave, 16_000)
    return folder


def recipe(sounds: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "codec": {"preset": "nano", "clip_seconds": 0.2},
        "data": {"train": str(sounds), "val": str(sounds / "0.wav"), "cache_dir": str(sounds / "cache")},
        "batch_size": 4,
        "max_steps": 4,
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "schedule": {"warmup_steps": 0},
        "eval": {"every": 0, "max_rows": 4},
        "checkpoint": {"every": 2, "keep": 5},
        "precision": "fp32",
        "log_every": 2,
    }
    return parse(Recipe, merge(values, changes), "test")


def test_it_learns_and_its_folder_loads(sounds: Path, tmp_path: Path) -> None:
    result = train(recipe(sounds, max_steps=40, eval={"every": 20}), tmp_path / "run")
    assert result.progress.applied == 40 and result.plot is not None and result.plot.is_file()
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    val = [line for line in lines if line["kind"] == "val"]
    assert [line["step"] for line in val] == [20, 40] and val[1]["loss"] < val[0]["loss"]
    assert val[0]["loss"] == pytest.approx(val[0]["stft"] + val[0]["mel"]) and len(val[0]["usage"]) == 4
    codec = load_codec(tmp_path / "run")
    assert codec.encode(torch.zeros(4000)).shape == (4, codec.num_frames(4000))


@pytest.mark.parametrize("losses", [{}, {"adversarial": 0.5, "discriminator_start_step": 1}])
def test_a_resumed_run_ends_bit_by_bit_where_the_other_did(
    sounds: Path, tmp_path: Path, losses: dict[str, Any]
) -> None:
    stage = recipe(sounds, codec={"losses": losses})
    train(stage, tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "step-00000002", tmp_path / "b" / "step-00000002")
    shutil.copy(tmp_path / "a" / "recipe.json", tmp_path / "b")
    shutil.copy(tmp_path / "a" / "metrics.jsonl", tmp_path / "b")
    train(stage, tmp_path / "b", resume_from=tmp_path / "b" / "step-00000002")
    for name in ("model.safetensors", "training/state.safetensors"):
        first, second = ((tmp_path / run / "last" / name).read_bytes() for run in ("a", "b"))
        assert first == second, name
    runs = [read_lines(tmp_path / run / "metrics.jsonl") for run in ("a", "b")]
    steps = [[line for line in lines if line["kind"] == "train"] for lines in runs]
    assert steps[0] == steps[1]
    assert ("critic" in steps[0][-1]) == bool(losses) and "critic" not in steps[0][0]
    with pytest.raises(UserError, match="complete"):
        train(stage, tmp_path / "b", resume=True)


@pytest.mark.parametrize("losses", [{}, {"adversarial": 0.5}])
def test_the_cut_into_micro_batches_changes_rounding_only(sounds: Path, tmp_path: Path, losses: dict[str, Any]) -> None:
    grads = []
    for batch, count in ((4, 1), (2, 2)):
        codec = {"losses": losses, "overrides": {"quantizer_dropout": 0.0}}
        stage = recipe(sounds, codec=codec, batch_size=batch, gradient_accumulation_steps=count)
        task = CodecTask(resolve_codec(stage), tmp_path, None)
        task.main_step.adversarial = bool(losses)
        torch.manual_seed(0)
        task.codec(task.rows.batch(0, 4).samples)  # tables
        task.main_step.accumulate([task.rows.batch(n * batch, batch) for n in range(count)])
        modules = task.trained
        assert all(p.grad is not None for p in modules.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in modules.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5 * float(grads[0].abs().max()), rtol=1e-3)


def test_the_discriminator_learns_to_tell_and_the_codec_learns_from_it() -> None:
    judge = Discriminator(torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    tone = torch.sin(torch.arange(2048) * 0.2)[None] * torch.rand(4, 1, generator=draw)
    noise = torch.randn(4, 2048, generator=draw) * 0.1
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    before = float(critic_loss(judge(tone), judge(noise)).detach()) / 4
    for _ in range(25):
        optimizer.zero_grad()
        critic_loss(judge(tone), judge(noise)).backward()
        optimizer.step()
    assert float(critic_loss(judge(tone), judge(noise)).detach()) / 4 < 0.5 * before
    lost = codec_losses(judge(tone), judge(noise))
    same = codec_losses(judge(tone), judge(tone))
    assert lost["adversarial"] > same["adversarial"] and lost["feature_matching"] > 0 and same["feature_matching"] == 0


def test_a_run_begins_with_the_weights_of_another(sounds: Path, tmp_path: Path) -> None:
    train(recipe(sounds, max_steps=2), tmp_path / "a")
    stage = recipe(sounds, codec={"init_from": str(tmp_path / "a")})
    task = CodecTask(resolve_codec(stage), tmp_path / "b", None)
    before = load_codec(tmp_path / "a").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in task.codec.state_dict().items())


def test_a_checkpoint_of_another_codec_is_refused(sounds: Path, tmp_path: Path) -> None:
    train(recipe(sounds, max_steps=2), tmp_path / "a")
    other = recipe(sounds, codec={"overrides": {"hidden_size": 24}})
    with pytest.raises(ConfigError, match="another recipe"):
        train(other, tmp_path / "a", resume=True)
    (tmp_path / "a" / "recipe.json").unlink()
    with pytest.raises(CheckpointError, match="another codec"):
        train(other, tmp_path / "a", resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": {"vocab_size": 512}}, "tokenizer.*does not go with"),
        ({"model": {"preset": "nano"}}, "model.*does not go with"),
        ({"compile": "blocks"}, "compile.*does not go with"),
        ({"data": {"seq_len": 64}}, "data.seq_len.*does not go with"),
        ({"eval": {"sample_every": 5}}, "sample_every.*writes no text"),
        ({"codec": {"clip_seconds": 0.1}}, "clip_seconds"),
        ({"codec": {"losses": {"stft": 0.0, "mel": 0.0}}}, "weight"),
        ({"codec": {"init_from": "x", "overrides": {"hop_length": 80}}}, "overrides"),
        ({"codec": {"overrides": {"codebook_size": 100000}}}, "65536"),
    ],
)
def test_what_means_nothing_to_a_codec_is_refused(sounds: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(sounds, **changes)


def test_the_bundled_recipe() -> None:
    stage = load_recipe("codec-tiny", ["data.train=x.jsonl"])
    assert stage.codec is not None and stage.codec.build().bits_per_second <= 3000
    assert load_recipe("codec-tiny", ["data.train=x.jsonl", "compile=off"]).compile == "off"
