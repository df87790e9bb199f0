"""Encoders of Hugging Face folders: what transformers' own compute from the same folder, in our rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.config import SiglipConfig, WhisperConfig
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.formats.hf_encoders import load_encoder, read_siglip, read_whisper
from muomni.model.encoders.siglip import SiglipEncoder
from muomni.model.encoders.whisper import WhisperEncoder
from muomni.model.inputs import AudioBatch, ImageBatch
from muomni.ops.audio_frames import SAMPLE_RATE, num_frames
from muomni.ops.log_mel import whisper_log_mel

transformers = pytest.importorskip("transformers")

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def shaken(model: Any) -> Any:
    """With weights so large, biases and all, that each of them shows in what the model computes."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("siglip")
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    config = transformers.SiglipConfig(text_config=text | {"projection_size": 24}, vision_config=VISION)
    model = shaken(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    return model.vision_model, folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whisper")
    model = shaken(transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER)))
    model.save_pretrained(folder)
    return model.model.encoder, folder


def picture(rows: int, columns: int, seed: int = 0) -> Tensor:
    """(3, height, width) in patches of 8."""
    return torch.rand(3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def as_images(*pictures: Tensor) -> ImageBatch:
    patches, grids = [], []
    for pixels in pictures:
        grid = (pixels.shape[1] // 8, pixels.shape[2] // 8)
        patches.append(pixels.view(3, grid[0], 8, grid[1], 8).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1))
        grids.append(grid)
    return ImageBatch(torch.cat(patches), tuple(grids))


@torch.no_grad()
def test_siglip_computes_what_transformers_does(siglip):
    theirs, folder = siglip
    config = read_siglip(folder, pixel_shuffle_factor=2, max_tokens=32)
    encoder = SiglipEncoder(config).eval()
    load_encoder(encoder, folder)
    # The size it was made for, others, and the first again, in one row.
    pictures = [picture(4, 4), picture(2, 6, 1), picture(8, 4, 2), picture(4, 4, 3)]
    found = encoder(as_images(*pictures))
    expected = []
    for pixels in pictures:
        states = theirs(pixels[None], interpolate_pos_encoding=True).last_hidden_state[0]
        rows, columns = pixels.shape[1] // 8, pixels.shape[2] // 8
        grid = states.view(rows // 2, 2, columns // 2, 2, -1).transpose(1, 2)
        expected.append(grid.flatten(2).flatten(0, 1))
    assert encoder.counts(as_images(*pictures)) == [len(part) for part in expected]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)
    assert float(found.std()) > 0.1


@torch.no_grad()
def test_siglip_alone_in_its_folder(siglip, tmp_path):
    theirs, folder = siglip
    config = transformers.SiglipVisionConfig(**VISION)
    alone = transformers.SiglipVisionModel(config)
    alone.load_state_dict(theirs.state_dict())
    alone.save_pretrained(tmp_path)
    assert read_siglip(tmp_path) == read_siglip(folder)
    encoders = [SiglipEncoder(read_siglip(folder)) for _ in range(2)]
    for encoder, place in zip(encoders, (folder, tmp_path), strict=True):
        load_encoder(encoder, place)
    images = as_images(picture(4, 4))
    assert torch.equal(encoders[0](images), encoders[1](images))


def sound(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_whisper_computes_what_transformers_does(whisper):
    theirs, folder = whisper
    encoder = WhisperEncoder(read_whisper(folder)).eval()
    load_encoder(encoder, folder)
    extract = transformers.WhisperFeatureExtractor()
    # The second is longer than a window. Its second window ends in silence: we hear a clip to its end, and Whisper
    # also the two frames behind it, which hear half a window of it.
    clips = [F.pad(sound(1.3), (0, 800)), torch.cat((sound(30, 1), F.pad(sound(2, 2), (0, 800)))), torch.zeros(3000)]
    expected, mels = [], []
    for clip in clips:
        for piece in torch.split(clip, 30 * SAMPLE_RATE):
            features = extract(piece.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            states = theirs(features).last_hidden_state[0]
            tokens = -(-num_frames(len(piece)) // 8)
            expected.append(states.view(-1, 64)[:tokens])
        mels.append(whisper_log_mel(clip))
    together = AudioBatch(torch.cat(mels), tuple(len(mel) for mel in mels))
    found = encoder(together)
    assert encoder.counts(together) == [17, 375 + 26, 3]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)
    assert float(found.std()) > 0.1


def test_a_folder_leaves_out_what_is_usual(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": {"hidden_size": 48}}')
    assert read_siglip(tmp_path, max_tokens=81) == SiglipConfig(
        kind="siglip",
        hidden_size=48,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_tokens=81,
        patch_size=16,
        grid=14,
    )
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "num_mel_bins": 128}')
    assert read_whisper(tmp_path, ctc=True) == WhisperConfig(
        kind="whisper",
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_mel_bins=128,
        ctc=True,
    )


SIGLIP_FOLDER = {"model_type": "siglip_vision_model"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "clip"}, "model_type = 'clip': a vision encoder is taken from SigLIP folders"),
        ({"model_type": "siglip2"}, "model_type = 'siglip2'"),
        (SIGLIP_FOLDER | {"hidden_act": "silu"}, "hidden_act = 'silu': must be one of"),
        (SIGLIP_FOLDER | {"num_channels": 1}, "num_channels = 1"),
        (SIGLIP_FOLDER | {"patch_size": [16, 8]}, "patch_size = [16, 8]: must be one number"),
        (SIGLIP_FOLDER | {"hidden_size": 50}, "hidden_size = 50: must be a multiple of"),
        ({"model_type": "siglip", "vision_config": 3}, "vision_config = 3: must be an object"),
    ],
)
def test_what_no_vision_encoder_is_made_of(tmp_path, values, words):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
        read_siglip(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "siglip"}, "model_type = 'siglip': an audio encoder is taken from Whisper folders"),
        ({"model_type": "whisper", "max_source_positions": 750}, "max_source_positions = 750"),
        ({"model_type": "whisper", "activation_function": "relu"}, "activation_function = 'relu'"),
    ],
)
def test_what_no_audio_encoder_is_made_of(tmp_path, values, words):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
        read_whisper(tmp_path)
    assert words in str(error.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        read_siglip(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no Whisper model in .*: it has no config.json"):
        read_whisper(tmp_path)


def test_other_pixels_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP_FOLDER))
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.48, 0.46, 0.41], "image_std": [0.5, 0.5, 0.5]}'
    )
    with pytest.raises(ConfigError, match="image_mean"):
        read_siglip(tmp_path)


def test_what_a_folder_says_is_not_changed(siglip):
    with pytest.raises(ConfigError, match="hidden_size: the folder says it"):
        read_siglip(siglip[1], hidden_size=12)


def test_weights_that_do_not_fit(siglip, whisper):
    config = read_siglip(siglip[1])
    with pytest.raises(CheckpointError, match=r"layers\.2\.fc1\.bias is missing"):
        load_encoder(SiglipEncoder(config.replace(num_hidden_layers=3)), siglip[1])
    with pytest.raises(CheckpointError, match=r"positions is \(16, 24\), the configuration says \(25, 24\)"):
        load_encoder(SiglipEncoder(config.replace(grid=5)), siglip[1])
    with pytest.raises(CheckpointError, match=r"conv1.weight is missing"):
        load_encoder(WhisperEncoder(read_whisper(whisper[1])), siglip[1])
