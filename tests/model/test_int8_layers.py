"""Models with int8 layers: what they compute, how they move, copy, save and load, and what they refuse."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muomni.config import OmniConfig, ThinkerConfig, preset
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.formats.pretrained import load_model, read_quantization, save_model
from muomni.model import OmniModel
from muomni.model.int8_layers import Int8Embedding, Int8Linear, Int8Weight, to_float, to_int8

CONFIG = ThinkerConfig(
    vocab_size=72,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.2,
)
IDS = torch.arange(40).view(2, 20)
both = pytest.mark.parametrize("tied", [True, False])


def make(tied: bool = True, seed: int = 0) -> OmniModel:
    config = OmniConfig(thinker=CONFIG.replace(tie_word_embeddings=tied))
    return OmniModel(config, torch.Generator().manual_seed(seed)).eval()


def quantized(tied: bool = True, seed: int = 0) -> OmniModel:
    model = make(tied, seed)
    to_int8(model)
    return model


def is_tied(model: OmniModel) -> bool:
    head, embedding = model.thinker.lm_head, model.thinker.embed_tokens
    return head.weight is embedding.weight and head.weight.data_ptr() == embedding.weight.data_ptr()


@torch.no_grad()
def logits(model: OmniModel) -> Tensor:
    out = model(IDS).logits
    assert isinstance(out, Tensor)
    return out


# Computing


@both
def test_every_matrix_becomes_int8_under_its_name(tied: bool) -> None:
    plain, model = make(tied), quantized(tied)
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in model.modules())
    before, after = plain.state_dict(), model.state_dict()
    assert {name for name in after if not name.endswith(".scale")} == set(before)
    for name, tensor in after.items():
        if name.endswith(".scale"):
            assert (tensor.dtype, tensor.shape) == (torch.float32, before[name[:-5] + "weight"].shape[:1])
        elif before[name].ndim == 2:
            assert tensor.dtype == torch.int8 and tensor.is_contiguous()
        else:
            assert tensor.dtype == torch.float32
    assert is_tied(model) == tied
    assert model.is_quantized and not plain.is_quantized
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.num_parameters() == plain.num_parameters()


@both
def test_logits_are_those_of_the_dequantised_model_and_near_the_float_one(tied: bool) -> None:
    plain, model = make(tied), quantized(tied)
    back = copy.deepcopy(model)
    to_float(back)
    torch.testing.assert_close(logits(model), logits(back), rtol=1e-4, atol=1e-5)
    error = (logits(model) - logits(plain)).norm() / logits(plain).norm()
    assert 1e-5 < error < 0.05
    assert is_tied(back) == tied
    assert all(parameter.requires_grad for parameter in back.parameters())


def test_the_layers_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(24, 10)
    layer = Int8Linear.from_float(plain)
    x = torch.randn(3, 5, 24, generator=generator)
    expected = nn.functional.linear(x, layer.dequantized(), plain.bias)
    torch.testing.assert_close(layer(x), expected.detach(), rtol=1e-4, atol=1e-5)
    table = nn.Embedding(11, 6)
    embedding = Int8Embedding.from_float(table)
    assert torch.equal(embedding(torch.tensor([[3, 10]])), embedding.dequantized()[[3, 10]][None])
    assert repr(layer) == "Int8Linear(in_features=24, out_features=10, bias=True)"


def test_the_loss_is_that_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.model.omni._LOSS_ROWS", 7)
    model = quantized()
    labels = IDS.clone()
    labels[0, 3:9] = -100
    expected = nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model(IDS, labels=labels).loss, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_activations_choose_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("muomni.model.int8_layers.int8_linear", lambda x, *rest: asked.append(rest[-1]) or x)
    layer = Int8Linear(8, 4)
    layer.kernels = ("packed", "cast", "dynamic")
    for rows in (1, 4, 5, 48, 49):
        layer(torch.zeros(1, rows, 8))
    assert asked == ["packed", "packed", "cast", "cast", "dynamic"]


# Refusing


def test_training_is_refused() -> None:
    model = quantized().train()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="a quantised model cannot be trained"):
        model(IDS, labels=IDS)
    with torch.no_grad():
        assert model(IDS, labels=IDS).loss > 0
    with pytest.raises(UserError, match="int8 weights give no gradients"):
        model.thinker.lm_head(torch.zeros(1, 32, requires_grad=True))


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = make()
    with torch.no_grad():
        model.thinker.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(UserError, match=r"thinker\.layers\.1\.mlp\.up_proj cannot be quantised: a weight is infinite"):
        to_int8(model)


# Moving and copying


@both
@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.bfloat16(),
        lambda m: m.type(torch.bfloat16),
        lambda m: m.to("cpu", torch.bfloat16),
    ],
    ids=["to", "bfloat16", "type", "to-both"],
)
def test_a_change_of_type_leaves_the_weights(tied: bool, convert: Any) -> None:
    model = quantized(tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same = convert(model)
    assert same is model and model.dtype == torch.bfloat16 and is_tied(model) == tied
    for name, tensor in model.state_dict().items():
        if before[name].dtype == torch.int8 or name.endswith(".scale"):
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
        else:
            assert tensor.dtype == torch.bfloat16
    low = logits(model)
    assert low.dtype == torch.bfloat16
    assert (low.float() - logits(quantized(tied))).norm() < 0.05 * low.float().norm()
    assert model.float().dtype == torch.float32


@both
def test_a_model_is_tied_anew_where_torch_makes_new_parameters(tied: bool) -> None:
    """From and to `meta` it does, of float models too; between devices and types it moves them in place."""
    model = quantized(tied).to(torch.bfloat16)
    assert is_tied(model) == tied
    model = model.to("meta")
    assert model.device.type == "meta"
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.to_empty(device="cpu").thinker.embed_tokens.weight.dtype == torch.int8
    model.thinker.tie_weights()
    assert is_tied(model) == tied


@both
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_its_own(tied: bool, clone: Any) -> None:
    model = quantized(tied)
    other = clone(model)
    assert is_tied(other) == tied and torch.equal(logits(other), logits(model))
    before = logits(model)
    other.thinker.embed_tokens.weight.zero_()
    other.thinker.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(logits(model), before)


@both
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_goes_into_another_model(tied: bool, assign: bool) -> None:
    model, other = quantized(tied, 1), quantized(tied, 2)
    other.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=assign)
    other.thinker.tie_weights()
    assert torch.equal(logits(other), logits(model)) and is_tied(other) == tied


def test_float_weights_are_not_cast_into_int8_ones() -> None:
    with pytest.raises(UserError, match=r"thinker\.embed_tokens\.weight is float32, and this model's is int8"):
        quantized().load_state_dict(make().state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make().load_state_dict(quantized().state_dict())


# Folders


@both
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_folder_keeps_every_bit(tmp_path: Path, tied: bool, dtype: torch.dtype | None) -> None:
    model = quantized(tied)
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization"] == {"method": "int8"}
    assert read_quantization(tmp_path) == "int8"
    back = load_model(tmp_path, dtype=dtype)
    assert back.dtype == (dtype or torch.float32) and is_tied(back) == tied and not back.training
    assert back.config == model.config
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.int8 or name.endswith(".scale"):
            assert torch.equal(tensor, back.state_dict()[name]), name
    # The kernels rely on it.
    assert all(m.weight.data_ptr() % 64 == 0 for m in back.modules() if isinstance(m, Int8Weight))
    if dtype is not torch.bfloat16:
        assert torch.equal(logits(back), logits(model))


@both
@pytest.mark.parametrize("qwen3", [True, False])
def test_float_folders_are_quantised_on_the_way(tmp_path: Path, tied: bool, qwen3: bool) -> None:
    save_model(make(tied), tmp_path, qwen3=qwen3)
    assert read_quantization(tmp_path) is None
    back = load_model(tmp_path, int8=True)
    expected = quantized(tied).state_dict()
    assert expected.keys() == back.state_dict().keys() and is_tied(back) == tied
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    save_model(quantized(tied), tmp_path)
    with pytest.raises(UserError, match="holds int8 weights already"):
        load_model(tmp_path, int8=True)


@both
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_size_is_at_most_27_percent(tied: bool, name: Any) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = OmniModel(config.replace(thinker=config.thinker.replace(tie_word_embeddings=tied)))
        before = sum(parameter.nbytes for parameter in model.parameters())
        to_int8(model)
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    assert 0.25 < sum(tensors.values()) / before <= 0.27


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = "thinker.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}.scale"), rf"{NAME}\.scale is missing"),
        (lambda t: t.pop(f"{NAME}.weight"), rf"{NAME}\.weight is missing"),
        (lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"][:9].clone()}), rf"{NAME}\.weight is \(9, 32\)"),
        (lambda t: t.update({f"{NAME}.scale": t[f"{NAME}.scale"][:9].clone()}), rf"{NAME}\.scale is \(9,\)"),
        (lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].float()}), "weight is float32, .* must be int8"),
        (lambda t: t.update({f"{NAME}.scale": t[f"{NAME}.scale"].half()}), "scale is float16, .* must be float32"),
        (lambda t: t.update({"x": torch.zeros(1)}), "x is not part of the model"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    save_model(quantized(), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_model(quantized(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization": {"method": "int4"}}))
    with pytest.raises(ConfigError, match=r"quantization = \{'method': 'int4'\}: μOmni knows"):
        load_model(tmp_path)
    del values["quantization"]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"weight is int8, and by config\.json it must be floating point"):
        load_model(tmp_path)


def test_a_weight_in_a_file_that_is_not_finite_is_named(tmp_path: Path) -> None:
    save_model(make(), tmp_path)
    edit(tmp_path, lambda t: t[f"{NAME}.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=rf"{NAME}\.weight cannot be quantised"):
        load_model(tmp_path, int8=True)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_dequantised_model(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    model = quantized(tied).to(dtype)
    save_model(model, tmp_path, qwen3=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == dtype
    ours = copy.deepcopy(model)
    to_float(ours)
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(IDS).logits, ours.float()(IDS).logits, rtol=0, atol=1e-4)


# Memory

_PEAK = """
import sys
from pathlib import Path
import torch
from muomni.formats.pretrained import load_model

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

# What torch loads when it is first used is not the model's.
load_model(Path(sys.argv[3]), int8=sys.argv[2] == "on-the-way")
before = peak()
model = load_model(Path(sys.argv[1]), int8=sys.argv[2] == "on-the-way")
print(peak() - before, sum(t.nbytes for t in model.state_dict().values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("how", ["int8", "on-the-way"])
def test_loading_never_holds_float_weights(tmp_path: Path, how: str) -> None:
    config = ThinkerConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    with torch.device("meta"):
        model = OmniModel(OmniConfig(thinker=config))
    if how == "int8":
        to_int8(model)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(1)
    save_model(model, tmp_path)
    float32 = 4 * model.num_parameters()
    assert float32 > 150e6
    del model
    small = tmp_path / "small"
    small.mkdir()
    save_model(quantized() if how == "int8" else make(), small)
    command = [sys.executable, "-c", _PEAK, str(tmp_path), how, str(small)]
    # Every block of 64 KiB or more has a mapping of its own, so that gaps in the heap, which come and go with what else
    # the machine does, are not taken for weights.
    blocks = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=blocks)
    rise, stored = map(int, done.stdout.split())
    assert stored < 0.27 * float32
    # One matrix as float beside the int8 ones is a hundredth of the whole here.
    assert rise < 0.35 * float32, f"{rise / 1e6:.0f} MB for {float32 / 1e6:.0f} MB of float32"
