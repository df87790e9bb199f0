"""`model.quantize("int8")`: kernels by measurement, the cache of the measurements, and what else uses the result."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import muomni.accel.int8 as quantize_module
from muomni import MuOmni
from muomni.accel.int8 import TIMINGS, dequantize_model, quantize, tune
from muomni.errors import ConfigError, UserError
from muomni.model.int8_layers import Int8Linear
from muomni.ops.int8 import why_not


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "int8.json"


def fake_times(**fastest: str) -> dict[str, dict[str, float]]:
    """As `_measure` gives; for each number of rows, which kernel wins, at half of float's time."""
    names = ("float", "cast", "packed", "dynamic")
    return {
        rows[1:]: {name: 0.5 if name == best else 2.0 for name in names} | {"float": 1.0}
        for rows, best in fastest.items()
    }


TIMES = fake_times(r1="packed", r16="cast", r128="dynamic")


def test_the_report_and_the_size(model: MuOmni) -> None:
    before = sum(p.nbytes for p in model.parameters())
    report = model.quantize("int8")
    assert report.method == "int8" and report.bytes_before == before
    # nano's rows are short, so that scales weigh more than in any other preset.
    assert report.bytes_after < 0.3 * before
    shapes = {(m.out_features, m.in_features) for m in model.modules() if isinstance(m, Int8Linear)}
    assert {(c.out_features, c.in_features) for c in report.choices} == shapes
    assert sum(c.layers for c in report.choices) == 2 * 7 + 1
    assert f"{report.bytes_after:,}" in str(report) and len(report.lines) == 1 + len(shapes)


def test_the_fastest_kernel_is_set_and_losing_is_said(model: MuOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    times = copy.deepcopy(TIMES)
    times["16"]["float"] = 0.25
    monkeypatch.setattr(quantize_module, "_measure", lambda *_: times)
    report = model.quantize()
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert all(layer.kernels == ("packed", "cast", "dynamic") for layer in layers)
    text = str(report.choices[0])
    assert "1 rows packed 2.0×, 16 rows cast 0.5× (slower than float), 128 rows dynamic 2.0×" in text


@pytest.mark.parametrize(("decode", "prompt", "kept"), [(0.4, 0.4, True), (0.4, 0.6, False), (0.48, 0.4, False)])
def test_float_stays_where_int8_loses(
    model: MuOmni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: float, prompt: float, kept: bool
) -> None:
    """The winners take 0.5: float at 0.48 is within noise."""
    times = copy.deepcopy(TIMES)
    times["1"]["float"], times["128"]["float"] = decode, prompt
    monkeypatch.setattr(quantize_module, "_measure", lambda *_: times)
    before = sum(p.nbytes for p in model.parameters())
    report = model.quantize(keep_float="auto")
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert all((layer.float_copy is not None) == kept for layer in layers)
    assert ("computes in float, copies of" in str(report)) == kept
    assert sum(c.float_bytes for c in report.choices) == kept * sum(4 * m.weight.numel() for m in layers)
    x = torch.randn(2, layers[0].in_features)
    right = nn.functional.linear(x, layers[0].dequantized())
    assert not kept or torch.equal(layers[0](x), right)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 0.33 * before
    tune(model)
    assert all(layer.float_copy is None for layer in layers)


def test_real_measurements_have_every_kernel_that_works(model: MuOmni) -> None:
    layer = Int8Linear.from_float(nn.Linear(64, 128, bias=False))
    times = quantize_module._measure([layer.weight] * 3, layer.scale, torch.float32)
    assert set(times) == {"1", "16", "128"}
    for row in times.values():
        assert {"float", "cast"} <= set(row) and all(0 < seconds < 5 for seconds in row.values())


def test_measurements_are_kept(model: MuOmni, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(weights: list[Any], *_: Any) -> Any:
        asked.append(len(weights))
        return TIMES

    monkeypatch.setattr(quantize_module, "_measure", measure)
    first = model.quantize()
    assert TIMINGS.path == own_cache and len(asked) == len(first.choices)
    assert len(json.loads(own_cache.read_text())) == len(first.choices)
    assert tune(model) == first.choices
    assert len(asked) == len(first.choices)
    # Another number of threads is another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        tune(model)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 2 * len(first.choices)
    assert len(json.loads(own_cache.read_text())) == 2 * len(first.choices)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_cache_is_measured_again(model: MuOmni, own_cache: Path, content: str) -> None:
    own_cache.parent.mkdir()
    own_cache.write_bytes(content.encode("latin-1"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = model.quantize()
    assert ["cannot be used" in str(w.message) for w in caught] == [True] * (2 if content != "[]" else 0)
    assert len(json.loads(own_cache.read_text())) == len(report.choices)


def test_an_incomplete_entry_is_measured_again(model: MuOmni, own_cache: Path) -> None:
    report = model.quantize()
    entries = json.loads(own_cache.read_text())
    key = next(iter(entries))
    del entries[key]["16"]
    own_cache.write_text(json.dumps(entries))
    assert len(tune(model)) == len(report.choices)
    assert "16" in json.loads(own_cache.read_text())[key]


def test_a_cache_that_cannot_be_written_is_said(model: MuOmni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(quantize_module, "_measure", lambda *_: TIMES)
    with pytest.warns(UserWarning, match=r"cannot be (written|used)"):
        model.quantize()
    assert model.is_quantized


def test_one_kernel_for_all(model: MuOmni) -> None:
    model.quantize()
    quantize_module.use_kernel(model, "reference")
    assert {m.kernels for m in model.modules() if isinstance(m, Int8Linear)} == {("reference",) * 3}
    with pytest.raises(ConfigError, match="int8 kernel 'fast': there are reference, cast, fused, packed, dynamic"):
        quantize_module.use_kernel(model, "fast")  # type: ignore[arg-type]
    odd = nn.Sequential(Int8Linear(16, 8), Int8Linear(17, 8))
    with pytest.raises(ConfigError, match="8 × 17: .* multiple of 16"):
        quantize_module.use_kernel(odd, "packed")
    assert odd[0].kernels == ("cast",) * 3


@pytest.mark.parametrize("kernel", ["cast", "packed", "dynamic"])
def test_a_layer_compiles_whole(kernel: Any) -> None:
    layer = Int8Linear.from_float(nn.Linear(32, 16))
    if (reason := why_not(kernel, torch.device("cpu"), 16, 32)) is not None:
        pytest.skip(reason)
    quantize_module.use_kernel(layer, kernel)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    # No compiler is needed: what matters is that torch can trace it.
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


def test_what_cannot_be_quantised_is_refused(model: MuOmni) -> None:
    with pytest.raises(ConfigError, match=r"quantize\('int4'\): there is 'int8'"):
        model.quantize("int4")
    wrong: Any = "always"
    with pytest.raises(ConfigError, match="keep_float = 'always': there are auto, never"):
        model.quantize(keep_float=wrong)
    assert not model.is_quantized
    with pytest.raises(UserError, match="not quantised"):
        dequantize_model(model)
    model.quantize()
    with pytest.raises(UserError, match="quantised already"):
        quantize(model)
    with pytest.raises(UserError, match="cannot be trained"):
        model.gradient_checkpointing_enable()


def test_a_quantised_model_chats_saves_and_loads(model: MuOmni, tmp_path: Path) -> None:
    float_tokens = model.complete("The cat", temperature=0, max_new_tokens=8, ignore_eos=True).tokens
    model.quantize()
    reply = model.complete("The cat", temperature=0, max_new_tokens=8, ignore_eos=True)
    assert len(reply.tokens) == len(float_tokens) == 8
    model.save_pretrained(tmp_path / "int8")
    back = MuOmni.from_pretrained(tmp_path / "int8", device="cpu")
    assert back.is_quantized
    assert back.complete("The cat", temperature=0, max_new_tokens=8, ignore_eos=True).tokens == reply.tokens
    assert back.chat("Hello there!", temperature=0, max_new_tokens=4).text is not None
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(
        back.generate(ids, temperature=0, max_new_tokens=5), model.generate(ids, temperature=0, max_new_tokens=5)
    )


def test_a_float_folder_loads_as_int8(nano_folder: Path, model: MuOmni) -> None:
    loaded = MuOmni.from_pretrained(nano_folder, device="cpu", int8=True)
    model.quantize()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_dequantising_makes_a_model_that_learns(model: MuOmni) -> None:
    model.quantize()
    dequantize_model(model)
    assert not model.is_quantized
    ids = torch.arange(12)[None]
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.thinker.lm_head.weight is model.thinker.embed_tokens.weight


# torch's own dynamic quantisation


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*:UserWarning")
def test_torch_quantize_dynamic_works_and_chats(model: MuOmni) -> None:
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
    packed = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    assert isinstance(model.thinker.lm_head, nn.Linear), "the float model is untouched"
    assert (packed.dtype, packed.device) == (torch.float32, torch.device("cpu"))
    with torch.no_grad():
        after = packed(ids).logits
        assert packed(ids, labels=ids).loss > 0
    assert 0 < (after - before).norm() < 0.1 * before.norm()
    assert packed.chat("Hello there!", temperature=0, max_new_tokens=6, ignore_eos=True).finish_reason == "length"
    assert copy.deepcopy(packed).complete("The", max_new_tokens=3, seed=0).text is not None
    in_place = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    assert in_place is model
    assert torch.equal(model(ids).logits, after)
