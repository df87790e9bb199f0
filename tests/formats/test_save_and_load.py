"""What is saved can be loaded and computes the same; what could not be loaded is not saved."""

import copy
import json
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muomni import MuOmni
from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.formats.pretrained import read_config
from muomni.infer import SamplingParams
from muomni.infer.reference import next_tokens

IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def make(tied: bool = True) -> MuOmni:
    config = OmniConfig(thinker=ThinkerConfig(**SIZES, tie_word_embeddings=tied), eos_token_ids=(1,))
    return MuOmni.from_config(config, seed=0, device="cpu").eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out = model(IDS).logits
    assert isinstance(out, Tensor)
    return out.float()


def untie(model: MuOmni) -> MuOmni:
    model.thinker.lm_head.weight = nn.Parameter(torch.randn(40, 32, generator=torch.Generator().manual_seed(1)))
    return model


def merged_adapter(model: MuOmni) -> MuOmni:
    """A head that an adapter has learnt as a whole, and projections with LoRA, merged."""
    import peft

    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"], r=2)
    adapted: Any = peft.PeftModel(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    merged = adapted.merge_and_unload()
    assert isinstance(merged, MuOmni)
    return merged


def share(model: MuOmni) -> None:
    blocks: Any = model.thinker.layers
    blocks[1].mlp.up_proj.weight = blocks[0].mlp.up_proj.weight


def cut(model: MuOmni) -> None:
    """As `drop_layer`, but the configuration says so too."""
    drop_layer(model)
    model.config = model.config.replace(thinker=model.config.thinker.replace(num_hidden_layers=1))


CHANGES: dict[str, Callable[[MuOmni], Any]] = {
    "as it is": lambda model: model,
    "untied": untie,
    "int8": lambda model: model.quantize("int8"),
    "untied, int8": lambda model: untie(model).quantize("int8"),
    "bf16": lambda model: model.to(torch.bfloat16),
    "merged adapter": merged_adapter,
    "assigned state": lambda model: model.load_state_dict(
        {name: value.clone() for name, value in model.state_dict().items()}, assign=True
    ),
    "two blocks of one matrix": share,
    "no block but the first": cut,
    "untied through its state": lambda model: model.load_state_dict(
        model.state_dict() | {"thinker.lm_head.weight": torch.full((40, 32), 0.5)}
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_saved_computes_the_same(change: str, tied: bool, tmp_path: Path) -> None:
    model = make(tied)
    CHANGES[change](model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(MuOmni.from_pretrained(tmp_path / "saved", device="cpu")), logits(model))
    model.export_hf(tmp_path / "hf")
    exported = MuOmni.from_pretrained(tmp_path / "hf", device="cpu")
    torch.testing.assert_close(logits(exported), logits(model), rtol=2e-2, atol=2e-2 * float(logits(model).abs().max()))
    assert exported.config.thinker.tie_word_embeddings == model.thinker.is_tied


def add_module(model: MuOmni) -> None:
    model.thinker.probe = nn.Linear(3, 3)


def prune(model: MuOmni) -> None:
    block: Any = model.thinker.layers[0]
    block.mlp.up_proj.weight = nn.Parameter(block.mlp.up_proj.weight[:40])


def prune_block(model: MuOmni) -> None:
    mlp: Any = model.thinker.layers[1].mlp
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight = nn.Parameter(layer.weight[:40].clone())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :40].clone())


def drop_layer(model: MuOmni) -> None:
    model.thinker.layers = model.thinker.layers[:1]


def double_layer(model: MuOmni) -> None:
    model.thinker.layers.append(copy.deepcopy(model.thinker.layers[1]))


def change_eps(model: MuOmni) -> None:
    model.thinker.norm.eps = 0.1


def replace_layer(model: MuOmni) -> None:
    """Weights of the right names, and another computation."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    block: Any = model.thinker.layers[1]
    layer = Doubled(32, 48, bias=False)
    layer.load_state_dict(block.mlp.up_proj.state_dict())
    block.mlp.up_proj = layer


class Tagged(Tensor):
    """A tensor of a library's own class, as torchao's are."""


def subclass_weight(model: MuOmni) -> None:
    block: Any = model.thinker.layers[1]
    block.mlp.up_proj.weight = nn.Parameter(block.mlp.up_proj.weight.detach().as_subclass(Tagged))


def sparse_weight(model: MuOmni) -> None:
    block: Any = model.thinker.layers[1]
    block.mlp.up_proj.weight = nn.Parameter(block.mlp.up_proj.weight.detach().to_sparse())


def attach_adapter(model: MuOmni) -> None:
    import peft

    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"], r=2), model)


def quantize_by_torch(model: MuOmni) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def quantize_half(model: MuOmni) -> None:
    from muomni.model.int8_layers import Int8Linear

    block: Any = model.thinker.layers[0]
    block.mlp.up_proj = Int8Linear.from_float(block.mlp.up_proj)


@pytest.mark.filterwarnings("ignore")  # torch says that its quantisation moves elsewhere
@pytest.mark.parametrize(
    "change",
    [
        add_module,
        prune,
        drop_layer,
        double_layer,
        change_eps,
        replace_layer,
        subclass_weight,
        sparse_weight,
        attach_adapter,
        quantize_by_torch,
        quantize_half,
    ],
    ids=lambda f: f.__name__,
)
def test_what_could_not_be_loaded_is_not_saved(change: Callable[[MuOmni], None], tmp_path: Path) -> None:
    model = make()
    change(model)
    for save in (model.save_pretrained, model.export_hf):
        with pytest.raises(UserError, match="cannot be saved"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if find_spec("gguf"):
        with pytest.raises(UserError, match="cannot be saved"):
            model.export_gguf(tmp_path / "out.gguf")
        assert not any(tmp_path.iterdir())


class WithProbe(MuOmni):
    """A model of a user's own, with one more layer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.probe = nn.Linear(32, 3)


def test_a_class_of_ones_own_is_saved_and_loaded_by_it(tmp_path: Path) -> None:
    model = WithProbe(make().config)
    model.save_pretrained(tmp_path / "saved")
    loaded = WithProbe.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(loaded.probe.weight, model.probe.weight) and torch.equal(logits(loaded), logits(model))


def hook(model: MuOmni) -> None:
    block: Any = model.thinker.layers[1]
    block.mlp.up_proj.register_forward_hook(lambda _module, _args, out: 2 * out)


def replace_forward(model: MuOmni) -> None:
    block: Any = model.thinker.layers[1]
    layer = block.mlp.up_proj
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


@pytest.mark.parametrize(
    "change",
    [hook, replace_forward, prune_block, drop_layer, change_eps, replace_layer, subclass_weight, attach_adapter],
    ids=lambda f: f.__name__,
)
def test_what_the_native_decoder_cannot_see_is_left_to_torch(change: Callable[[MuOmni], None]) -> None:
    model = make()
    change(model)
    settings: dict[str, Any] = {"seed": 3, "max_new_tokens": 6, "ignore_eos": True}
    expected = model.generate(IDS, use_cache=False, **settings)
    model.runner = "auto"
    with pytest.warns(UserWarning, match=r"(layers|norm)\b.*: torch's modules compute the steps"):
        assert torch.equal(model.generate(IDS, **settings), expected)
    model.runner = "native"
    with pytest.raises(ConfigError, match="the native runner cannot be had"):
        model.generate(IDS, **settings)


def test_blocks_that_share_a_place_in_the_cache_are_refused() -> None:
    model = make()
    double_layer(model)
    model.config = model.config.replace(thinker=model.config.thinker.replace(num_hidden_layers=3))
    for use_cache in (True, False):
        with nullcontext() if not use_cache else pytest.raises(UserError, match=r"the places \[0, 1, 1\]"):
            model.generate(IDS, temperature=0, max_new_tokens=2, use_cache=use_cache)
    with pytest.raises(UserError, match=r"the places \[0, 1, 1\]"):
        next(next_tokens(model, IDS, SamplingParams(max_new_tokens=2)))
    block: Any = model.thinker.layers[2]
    block.self_attn.layer = 2
    whole = model.generate(IDS, temperature=0, max_new_tokens=4, use_cache=False, ignore_eos=True)
    assert torch.equal(model.generate(IDS, temperature=0, max_new_tokens=4, ignore_eos=True), whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [attach_adapter, quantize_by_torch, hook, replace_forward, subclass_weight, sparse_weight],
    ids=lambda f: f.__name__,
)
def test_what_others_have_put_in_is_not_quantised(change: Callable[[MuOmni], None]) -> None:
    model = make()
    change(model)
    before = logits(model)
    with pytest.raises(UserError, match=r"thinker\.\S+ cannot be quantised: it"):
        model.quantize("int8")
    assert torch.equal(logits(model), before) and not model.is_quantized


def test_a_weight_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    model = make()
    block: Any = model.thinker.layers[1]
    with torch.no_grad():
        block.mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj"):
        model.quantize("int8")
    assert not model.is_quantized
    with torch.no_grad():
        block.mlp.down_proj.weight[0, 0] = 0.0
    model.quantize("int8")
    assert model.is_quantized


def hf_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    make().export_hf(folder)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_head_in_the_file_is_taken_whatever_the_configuration_says(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    head = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    for int8 in (False, True):
        loaded = MuOmni.from_pretrained(folder, device="cpu", int8=int8)
        expected = make()
        expected.thinker.lm_head.weight = nn.Parameter(head)
        tolerance = 0.05 if int8 else 0.0
        assert float((logits(loaded) - logits(expected)).abs().max()) <= tolerance * float(logits(expected).abs().max())
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, folder / "model.safetensors")
    assert MuOmni.from_pretrained(folder, device="cpu").thinker.is_tied


def test_several_types_in_a_file_become_one(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: t.to(torch.bfloat16) if "layers" in name and t.ndim == 2 else t for name, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    change_config(folder, dtype="bfloat16", torch_dtype="bfloat16")
    with pytest.warns(UserWarning, match="float32.*bfloat16.*read as bfloat16|bfloat16.*float32.*read as bfloat16"):
        model = MuOmni.from_pretrained(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MuOmni.from_pretrained(folder, device="cpu", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_weights_that_need_scales_are_refused(dtype: torch.dtype | None, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight is float8_e4m3fn, .* floating point of at least 16 bits"
    ):
        MuOmni.from_pretrained(folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\udcff"])
def test_an_index_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        MuOmni.from_pretrained(folder, device="cpu")


def test_a_run_that_starts_from_a_folder_has_the_head_of_its_file(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.ones(40, 32)}, folder / "model.safetensors")
    assert not read_config(folder)[0].thinker.tie_word_embeddings


def test_end_tokens_are_those_of_the_generation_config(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert MuOmni.from_pretrained(folder, device="cpu").config.eos_token_ids == (5, 6)
    (folder / "generation_config.json").write_text("{}")
    assert MuOmni.from_pretrained(folder, device="cpu").config.eos_token_ids == (1,)


@pytest.mark.parametrize(
    "values",
    [
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rope_scaling": {"rope_type": "yarn", "factor": 4},
        },
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_what_the_thinker_does_not_do_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    change_config(folder, **values)
    with pytest.raises(UserError, match="the Thinker only does"):
        MuOmni.from_pretrained(folder, device="cpu")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path)
    change_config(folder, attn_logit_softcapping=30.0)
    with pytest.warns(UserWarning, match="attn_logit_softcapping") as told:
        loaded = MuOmni.from_pretrained(folder, device="cpu")
    assert [str(warning.message).split(": ")[-1] for warning in told] == ["attn_logit_softcapping"]
    assert torch.equal(logits(loaded), logits(make()))


def test_files_follow_the_umask(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "saved")
    before = os.umask(0)
    os.umask(before)
    for file in (tmp_path / "saved").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~before, file.name


def test_without_a_seed_torchs_generator_is_used() -> None:
    def drawn() -> Tensor:
        torch.manual_seed(7)
        return MuOmni.from_config("nano", device="cpu").thinker.embed_tokens.weight.detach()

    assert torch.equal(drawn(), drawn())


def test_sizes_that_no_tensor_can_have_are_told(tmp_path: Path) -> None:
    MuOmni.from_config("nano", device="cpu").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["thinker"]["intermediate_size"] = 2**64
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: a model of these sizes cannot be built"):
        MuOmni.from_pretrained(tmp_path / "model", device="cpu")
