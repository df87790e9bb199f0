"""The optimizations of blocks, on the blocks of encoders: ours, and those of Hugging Face folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muomni.accel import activation_checkpointing, attention_backend
from muomni.accel.compile import blocks as compilation
from muomni.accel.int8 import quantize, weight_bytes
from muomni.config import OmniConfig, SiglipConfig, WhisperConfig, encoder_configs, preset
from muomni.formats.pretrained import load_model, save_model
from muomni.model import OmniModel
from muomni.model.encoders.layers import ATTENTIONS
from muomni.model.inputs import Captions, MediaBatch, Transcripts
from muomni.model.int8_layers import Int8Linear, to_int8
from muomni.model.mrope import mrope_positions
from muomni.ops.attention import attention_reference
from tests.model.media import AUDIO, IMAGE, make_clips, make_config, make_images
from tests.training.objectives.batches import losses_of, make_batch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# A picture of 2 × 3 tokens, one of 1 × 2, and clips of 2 and 1 tokens.
IDS = torch.tensor([[5, *[IMAGE] * 6, 7, *[IMAGE] * 2, 8, *[AUDIO] * 2, 9, AUDIO, 10]])
POSITIONS = torch.from_numpy(mrope_positions(IDS.shape[1], [(1, 2, 3), (8, 1, 2)]))[:, None]
IMAGES, CLIPS = make_images((4, 6), (2, 4)), make_clips(13, 8)
MEDIA = MediaBatch(
    IMAGES,
    CLIPS,
    Transcripts.of([(0, b"ab"), (1, b"d")]),
    Captions(torch.tensor([5, 6, 7]), (1, 2), (0, 1), torch.tensor([0, 1])),
)
WEIGHTS = {"ctc": 1.0, "contrastive": 1.0}


def published(dropout: float = 0.0) -> OmniConfig:
    vision = SiglipConfig(kind="siglip", patch_size=8, grid=4, projection_dim=8, dropout=dropout, **SIZES)
    audio = WhisperConfig(kind="whisper", ctc=True, dropout=dropout, **SIZES)
    return make_config(False, False).with_encoders(vision, audio, IMAGE, AUDIO)


def ours(dropout: float = 0.0) -> OmniConfig:
    vision = {"projection_dim": 8, "dropout": dropout}
    return make_config(vision_=vision, audio_={"ctc": True, "dropout": dropout, "chunk_tokens": 1})


BOTH = pytest.mark.parametrize("config", [ours, published])


def make_model(config: OmniConfig) -> OmniModel:
    return OmniModel(config, torch.Generator().manual_seed(0))


def features_of(model: OmniModel) -> tuple[Tensor, Tensor]:
    features = model.encode_media(MEDIA)
    assert features.image is not None and features.audio is not None
    return features.image, features.audio


def loss_of(model: OmniModel) -> Tensor:
    loss = losses_of(model, make_batch(IDS, positions=POSITIONS, media=MEDIA), WEIGHTS).total
    assert loss is not None
    return loss


def gradients(model: OmniModel, precision: torch.dtype | None = None) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        loss = loss_of(model)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values()), found
    return [loss.detach(), *(gradient.clone() for gradient in found.values())]


@BOTH
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_checkpointing_gives_bit_equal_gradients(config: Callable[[float], OmniConfig], precision, mode):
    plain, checkpointed = make_model(config(0.2)), make_model(config(0.2))
    activation_checkpointing.enable(checkpointed, mode)
    for a, b in zip(gradients(plain, precision), gradients(checkpointed, precision), strict=True):
        assert torch.equal(a, b)


@BOTH
def test_checkpointing_keeps_less_of_encoders(config):
    model = make_model(config(0.2))

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (
                model.project_images(model.encode_images(IMAGES)),
                model.project_clips(model.encode_clips(CLIPS)),
            )
        return sum(sizes.values())

    everything = kept()
    activation_checkpointing.enable(model, "full")
    assert kept() < 0.75 * everything


@BOTH
@torch.no_grad()
def test_attention_is_set_everywhere_and_is_not_causal(config):
    model = make_model(config()).eval()
    seen: list[bool] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, segments: Any = None, *, causal: bool = True) -> Tensor:
        seen.append(causal)
        return attention_reference(q, k, v, segments, causal=causal)

    expected = loss_of(model)
    attention_backend.apply(model, attention_backend.AttentionChoice("reference", "for this test", attend))
    torch.testing.assert_close(loss_of(model), expected)
    assert seen == [False] * 4 + [True] * 2
    assert len([module for module in model.modules() if isinstance(module, ATTENTIONS)]) == 6


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks_give_the_same_gradients_and_settle():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    eager: Any = make_model(ours())
    compiled: Any = make_model(ours())
    compilation.apply(compiled, compilation.choose("blocks", torch.device("cpu")))
    for grids, frames in [(((2, 2),), (9,)), (((4, 6), (2, 4)), (40, 8)), (((2, 6),), (30, 3, 7)), (((4, 4),), (50,))]:
        if frames == (30, 3, 7):
            counters.clear()
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            tokens = model.vision(make_images(*grids)), model.audio(make_clips(*frames))
            sum(x.square().sum() for x in tokens).backward()
            learnt = (*model.vision.parameters(), *model.audio.parameters())
            results.append([*(x.detach() for x in tokens), *(parameter.grad for parameter in learnt)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 0, "media of other shapes compiled again"
    assert not counters["graph_break"]


@BOTH
@torch.no_grad()
def test_int8_encoders_load_again(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
    model = make_model(config()).eval()
    exact = (
        model.project_images(model.encode_images(IMAGES)),
        model.project_clips(model.encode_clips(CLIPS)),
    )
    quantize(model)
    found = (
        model.project_images(model.encode_images(IMAGES)),
        model.project_clips(model.encode_clips(CLIPS)),
    )
    for rough, right in zip(found, exact, strict=True):
        assert float((rough - right).norm() / right.norm()) < 0.03
        assert not torch.equal(rough, right)

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv1d)]
    assert len(convolutions) in (2, 3)
    assert all(layer.weight.is_floating_point() for layer in convolutions)
    assert model.vision.patch_embed.weight.is_floating_point()
    left = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert left == []
    assert any(isinstance(module, Int8Linear) for module in model.audio_projector.modules())

    for folder in ("int8", "float"):
        (tmp_path / folder).mkdir()
    save_model(model, tmp_path / "int8")
    save_model(make_model(config()), tmp_path / "float")
    for again in (load_model(tmp_path / "int8"), load_model(tmp_path / "float", int8=True)):
        assert again.config == model.config
        state = again.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        again_found = (
            again.project_images(again.encode_images(IMAGES)),
            again.project_clips(again.encode_clips(CLIPS)),
        )
        for a, b in zip(again_found, found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_int8_is_at_most_27_hundredths(name):
    vision, audio = encoder_configs(name)
    config = preset(name).with_encoders(vision.replace(projection_dim=128), audio.replace(ctc=True), IMAGE, AUDIO)
    with torch.device("meta"):
        model = OmniModel(config)
    before = weight_bytes(model)
    to_int8(model)
    assert weight_bytes(model) <= 0.27 * before
