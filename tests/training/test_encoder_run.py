"""Runs whose encoders come from Hugging Face folders, from the command line to a reply."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.cli import main
from muomni.config import SiglipConfig, WhisperConfig

transformers = pytest.importorskip("transformers")
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
SEEN = {"pixel_shuffle_factor": 2, "min_tokens": 4, "max_tokens": 12, "dropout": 0.1, "projection_dim": 8}
HEARD = {"max_seconds": 9.0, "dropout": 0.1, "ctc": True}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models as transformers writes them."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    vision = transformers.SiglipVisionConfig(**SIZES, image_size=32, patch_size=8)
    transformers.SiglipVisionModel(vision).save_pretrained(folder / "siglip")
    layers = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 24))}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    whisper = transformers.WhisperConfig(d_model=16, vocab_size=40, **layers, **heads, **special)
    transformers.WhisperModel(whisper).save_pretrained(folder / "whisper")
    return folder


def run_of(media: Path, tmp_path: Path, model: dict[str, Any], **more: Any) -> int:
    """`muomni train` of a run of two steps, in `tmp_path/run`; its exit code."""
    thinker = {"hidden_size": 32, "intermediate_size": 64}
    recipe = {
        "model": {"preset": "nano", "thinker": thinker, **model},
        "tokenizer": {"vocab_size": 330},
        "data": {"train": str(media / "train.jsonl"), "seq_len": 64, "cache_dir": str(tmp_path / "cache")},
        "batch_size": 2,
        "max_steps": 2,
        "schedule": {"warmup_steps": 1},
        "device": "cpu",
        "compile": "off",
        **more,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run")])
    return int(stop.value.code or 0)


def test_published_encoders_learn_are_saved_and_answer(
    published: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {
        "vision": {"from": str(published / "siglip"), **SEEN},
        "audio": {"from": str(published / "whisper"), **HEARD},
    }
    assert run_of(media, tmp_path, model, losses={"ctc": 0.1, "contrastive": 0.1}, freeze=["audio_projector"]) == 0
    made = MuOmni.from_pretrained(tmp_path / "run", device="cpu")
    assert isinstance(made.config.vision, SiglipConfig) and isinstance(made.config.audio, WhisperConfig)
    assert made.config.vision.model_dump() | SEEN == made.config.vision.model_dump()
    assert made.config.audio.model_dump() | HEARD == made.config.audio.model_dump()
    # Two steps from the folder's weights: near them, and no more the same.
    theirs = transformers.SiglipVisionModel.from_pretrained(published / "siglip").state_dict()
    name = next(name for name in theirs if name.endswith("fc1.weight"))
    ours = next(weight for key, weight in made.vision.state_dict().items() if key.endswith("fc1.weight"))
    assert 0 < (theirs[name] - ours).abs().max() < 0.01
    capfd.readouterr()
    shown = ["--image", str(media / "1.png"), "--audio", str(media / "1.wav")]
    with pytest.raises(SystemExit) as stop:
        main(["chat", str(tmp_path / "run"), *shown, "-m", "colour?", "--temperature", "0", "--max-new-tokens", "4"])
    assert not stop.value.code
    reply = made.chat([media / "1.png", media / "1.wav", "colour?"], temperature=0, max_new_tokens=4)
    assert capfd.readouterr().out == reply.text + "\n" and reply.timing.prompt_tokens > 4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"vision": {"from": "siglip", "hidden_size": 32}}, "hidden_size: the folder says it"),
        ({"vision": {"from": "siglip", "patch_size": 4}}, "patch_size: the folder says it"),
        ({"audio": {"from": "whisper", "num_mel_bins": 40}}, "num_mel_bins: the folder says it"),
        ({"audio": {"from": "siglip"}}, "an audio encoder is taken from Whisper folders"),
        ({"vision": {"from": "nothing"}}, "the folder does not exist"),
        ({"vision": {"from": "siglip", "min_tokens": 65}}, "min_tokens"),
        ({"vision": {"from": "siglip", "rope_theta": 9.0}}, "rope_theta"),
    ],
)
def test_what_a_folder_does_not_take_ends_with_2_before_anything_is_made(
    published: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], model: dict[str, Any], words: str
) -> None:
    for spec in model.values():
        spec["from"] = str(published / Path(spec["from"]).name)
    assert run_of(media, tmp_path, model) == 2
    assert words.replace(" ", "") in "".join(capfd.readouterr().err.split())
    assert not (tmp_path / "run").exists()
