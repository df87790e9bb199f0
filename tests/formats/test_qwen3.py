"""The Thinker is Qwen3: transformers' own implementation gives the same logits, tokens and folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import CheckpointError, ConfigError
from muomni.formats.pretrained import load_model, save_model
from muomni.infer import SamplingParams, generate
from muomni.model import OmniModel

transformers = pytest.importorskip("transformers")


@st.composite
def thinkers(draw: st.DrawFn) -> ThinkerConfig:
    """Small Thinkers: grouped heads, heads wider and narrower than D / H, tied and untied, several thetas."""
    keys = draw(st.sampled_from([1, 2, 3]))
    return ThinkerConfig(
        vocab_size=draw(st.integers(16, 90)),
        hidden_size=draw(st.sampled_from([12, 24, 40])),
        intermediate_size=draw(st.integers(8, 50)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=keys * draw(st.sampled_from([1, 2, 4])),
        num_key_value_heads=keys,
        head_dim=draw(st.sampled_from([2, 6, 8, 16])),
        max_position_embeddings=64,
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 1e6])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=0.3,
    )


def random_model(config: ThinkerConfig, seed: int, ends: tuple[int, ...] = ()) -> OmniModel:
    """Random weights, also in the norms, so that a forgotten norm weight shows."""
    generator = torch.Generator().manual_seed(seed)
    model = OmniModel(OmniConfig(thinker=config, eos_token_ids=ends), generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def to_transformers(model: OmniModel, folder: Path) -> Any:
    folder.mkdir(exist_ok=True, parents=True)
    save_model(model, folder, qwen3=True)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return theirs.eval()


@settings(max_examples=20, deadline=None)
@given(config=thinkers(), seed=st.integers(0, 1000), batch=st.integers(1, 3), length=st.integers(1, 20))
def test_logits_and_greedy_tokens_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, config: ThinkerConfig, seed: int, batch: int, length: int
) -> None:
    model = random_model(config, seed)
    theirs = to_transformers(model, tmp_path_factory.mktemp("hf"))
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
    ours = generate(model, ids, SamplingParams(temperature=0, max_new_tokens=12))
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours, expected[:, length:])


def test_greedy_tokens_with_a_repetition_penalty_are_those_of_transformers(tmp_path: Path) -> None:
    model = random_model(CONFIG, 3)
    ids = torch.tensor([[3, 4, 5], [6, 6, 6]])
    ours = generate(model, ids, SamplingParams(temperature=0, max_new_tokens=20, repetition_penalty=1.7))
    theirs = to_transformers(model, tmp_path).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.7,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(ours, theirs[:, 3:])
    assert not torch.equal(ours, generate(model, ids, SamplingParams(temperature=0, max_new_tokens=20)))


CONFIG = ThinkerConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.3,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["100GB", "10KB"])
def test_a_folder_goes_to_transformers_and_back(tmp_path: Path, tied: bool, shard: str) -> None:
    config = CONFIG.replace(tie_word_embeddings=tied, rope_theta=5_000.0)
    model = random_model(config, 1, ends=(7, 9))
    theirs = to_transformers(model, tmp_path / "ours")
    assert theirs.config.eos_token_id == [7, 9]
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shard == "10KB")
    back = load_model(tmp_path / "theirs")
    assert back.config.thinker.model_dump() == config.model_dump() | {"dropout": 0.0}
    assert back.config.eos_token_ids == (7, 9)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    assert (back.thinker.lm_head.weight is back.thinker.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_ours_loads_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = random_model(CONFIG.replace(tie_word_embeddings=tied, dropout=0.25), 2, ends=(3,))
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert back.config == model.config
    assert not back.training
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_bf16_folder_keeps_or_changes_its_dtype(tmp_path: Path) -> None:
    model = random_model(CONFIG, 4).to(torch.bfloat16)
    theirs = to_transformers(model, tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=None).dtype == torch.bfloat16
    wide = load_model(tmp_path)
    assert wide.dtype == torch.float32
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids).logits, theirs.float()(ids).logits, rtol=0, atol=1e-4)


def _save(folder: Path) -> Path:
    save_model(random_model(CONFIG, 5), folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, keep: float) -> None:
    file = _save(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else int(keep)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read, it is cut short or corrupt"):
        load_model(tmp_path)


def test_a_corrupt_header_is_named(tmp_path: Path) -> None:
    file = _save(tmp_path)
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_model(tmp_path)


def _edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["thinker"] = values.get("thinker", {}) | changes.pop("thinker", {})  # type: ignore[operator]
    (folder / "config.json").write_text(json.dumps(values | changes))


def test_a_missing_and_a_surplus_tensor_are_named(tmp_path: Path) -> None:
    _save(tmp_path)
    _edit(tmp_path, thinker={"num_hidden_layers": 4})
    with pytest.raises(CheckpointError, match=r"thinker\.layers\.3\.\S+ is missing.*and 6 more"):
        load_model(tmp_path)
    _edit(tmp_path, thinker={"num_hidden_layers": 2})
    with pytest.raises(CheckpointError, match=r"thinker\.layers\.2\.\S+ is not part of the model"):
        load_model(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    _save(tmp_path)
    _edit(tmp_path, thinker={"vocab_size": 51})
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \(50, 24\), the configuration says \(51, 24\)"):
        load_model(tmp_path)


def test_what_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    _save(tmp_path)
    for kind in ("llama", "qwen3_moe", None):
        _edit(tmp_path, model_type=kind)
        with pytest.raises(ConfigError, match=f"model_type = {kind!r}.*'muomni' and 'qwen3'"):
            load_model(tmp_path)


def test_a_missing_shard_and_missing_weights_are_named(tmp_path: Path) -> None:
    to_transformers(random_model(CONFIG, 6), tmp_path / "a").save_pretrained(tmp_path / "b", max_shard_size="10KB")
    shard = sorted((tmp_path / "b").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} missing"):
        load_model(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").unlink()
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("use_sliding_window", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    ],
)
def test_a_qwen3_folder_that_asks_for_more_is_refused(tmp_path: Path, key: str, value: object) -> None:
    save_model(random_model(CONFIG, 7), tmp_path, qwen3=True)
    values = json.loads((tmp_path / "config.json").read_text())
    if key == "rope_scaling":
        del values["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(ConfigError, match="the Thinker only does"):
        load_model(tmp_path)


def test_theta_as_transformers_4_writes_it(tmp_path: Path) -> None:
    save_model(random_model(CONFIG.replace(rope_theta=12_345.0), 8), tmp_path, qwen3=True)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_scaling": None}))
    assert load_model(tmp_path).config.thinker.rope_theta == 12_345.0
