"""`muomni quantize` and `muomni export` of its result, as their users meet them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.files import write_json
from muomni.formats.pretrained import read_quantization


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. The dog ate the bone, and then the dog slept. " * 20)
    return path


def test_it_prints_what_changed(muomni: Any, nano_folder: Path, tmp_path: Path, text: Path) -> None:
    code, out, err = muomni("quantize", nano_folder, "--method", "int8", "--out", tmp_path / "q", "--data", text)
    assert (code, err) == (0, "")
    for expected in ("bytes in float32", "perplexity", "KL divergence", "same top token", "1 rows", "128 rows"):
        assert expected in out
    assert read_quantization(tmp_path / "q") == "int8"
    model = MuOmni.from_pretrained(tmp_path / "q", device="cpu")
    assert model.is_quantized and model.tokenizer is not None
    code, out, _ = muomni("generate", tmp_path / "q", "Hello there!", "--temperature", "0", "--max-new-tokens", "4")
    assert code == 0


def test_json(muomni: Any, nano_folder: Path, tmp_path: Path, text: Path) -> None:
    args = ("quantize", nano_folder, "--out", tmp_path / "q", "--data", text, "--max-rows", "1", "--json")
    code, out, _ = muomni(*args)
    found = json.loads(out)
    assert code == 0 and found["method"] == "int8" and found["out"] == str(tmp_path / "q")
    quality = found["quality"]
    assert 0 < quality["targets"] < 256
    assert abs(quality["perplexity_change"]) < 0.05 and 0 < quality["kl"] < 0.05 and 0.9 < quality["top1"] <= 1
    assert found["bytes"] == (tmp_path / "q" / "model.safetensors").stat().st_size
    assert found["ratio"] == pytest.approx(found["bytes"] / found["bytes_float32"])


def test_the_run_names_its_own_validation_data(muomni: Any, nano_folder: Path, tmp_path: Path, text: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best").symlink_to(nano_folder)
    lines = tmp_path / "val.jsonl"
    lines.write_text("".join(json.dumps({"text": f"The cat sat on mat {i}."}) + "\n" for i in range(40)))
    data = {"train": [{"path": str(text)}], "val": [{"path": str(lines)}], "seq_len": 32}
    write_json(run / "recipe.json", {"name": "x", "max_steps": 200, "model": {"preset": "nano"}, "data": data})
    code, out, err = muomni("quantize", run, "--out", tmp_path / "q", "--json")
    assert (code, err) == (0, "")
    # Every token of the validation lines is predicted, but for the first of each piece.
    tokens = json.loads(out)["quality"]["targets"]
    assert 40 * 4 < tokens < 40 * 30


def test_without_comparison(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    code, out, _ = muomni("quantize", nano_folder, "--out", tmp_path / "q", "--no-compare")
    assert code == 0 and "perplexity" not in out and read_quantization(tmp_path / "q") == "int8"


def test_mistakes_have_exit_code_2(muomni: Any, nano_folder: Path, tmp_path: Path, text: Path) -> None:
    def refused(message: str, *args: object) -> None:
        code, out, err = muomni("quantize", *args)
        assert (code, out) == (2, "") and message in " ".join(err.split()), err

    out = ("--out", tmp_path / "new")
    refused("no run or model", tmp_path / "nothing", *out)
    refused("is not one of 'int8'", nano_folder, "--method", "int4", *out)
    refused("no such file or folder", nano_folder, *out, "--data", tmp_path / "nothing.txt")
    refused("give --data FILE, or --no-compare", nano_folder, *out)
    refused("give one of them", nano_folder, *out, "--data", text, "--no-compare")
    refused("is not empty", nano_folder, "--out", text.parent)
    assert not (tmp_path / "new").exists()
    assert muomni("quantize", nano_folder, *out, "--no-compare")[0] == 0
    refused("is quantised already", tmp_path / "new", "--out", tmp_path / "again", "--data", text)
    refused("holds int8 weights already", tmp_path / "new", "--out", tmp_path / "again", "--no-compare")
    assert not (tmp_path / "again").exists()


def test_without_a_tokenizer_there_is_nothing_to_compare_on(muomni: Any, tmp_path: Path, text: Path) -> None:
    MuOmni.from_config("nano", device="cpu", seed=0).save_pretrained(tmp_path / "bare")
    code, _, err = muomni("quantize", tmp_path / "bare", "--out", tmp_path / "q", "--data", text)
    assert code == 2 and "no tokenizer" in err


# Export


def test_an_int8_model_exports_as_float(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    muomni("quantize", nano_folder, "--out", tmp_path / "q", "--no-compare")
    for dtype in ("float32", "bfloat16"):
        code, out, _ = muomni("export", tmp_path / "q", "--out", tmp_path / dtype, "--dtype", dtype)
        assert code == 0 and f"in {dtype}" in out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float32")
    model = MuOmni.from_pretrained(tmp_path / "q", device="cpu")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        error = (theirs(ids).logits - model(ids).logits).norm() / model(ids).logits.norm()
    # The same weights; activations may have been rounded to int8.
    assert error < 0.02
    again = MuOmni.from_pretrained(tmp_path / "float32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, again(ids).logits, rtol=0, atol=1e-4)


def test_float_copies_are_compared_where_asked_for_and_never_written(
    muomni: Any, nano_folder: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loses = {"float": 1.0, "cast": 2.0}
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))  # no timings that another test has kept
    monkeypatch.setattr("muomni.accel.int8._measure", lambda *_: dict.fromkeys(("1", "16", "128"), loses))
    found = {}
    for keep in ("never", "auto"):
        args = ("--data", text, "--max-rows", "1", "--keep-float", keep, "--json")
        code, out, _ = muomni("quantize", nano_folder, "--out", tmp_path / keep, *args)
        found[keep] = json.loads(out)
        assert code == 0 and found[keep]["keep_float"] == keep
        assert all(("computes in float" in line) == (keep == "auto") for line in found[keep]["kernels"])
    never, auto = found["never"], found["auto"]
    assert never["bytes_of_float_copies"] == 0 < auto["bytes_of_float_copies"] < auto["bytes_float32"]
    assert never["bytes"] == auto["bytes"]
    assert 0 < auto["quality"]["kl"] < 0.05 and 0 < never["quality"]["kl"] < 0.05


def test_gguf(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "m.gguf"
    code, out, _ = muomni("export", nano_folder, "--format", "gguf", "--dtype", "q8_0", "--out", file, "--json")
    assert (code, json.loads(out)) == (
        0,
        {"out": str(file), "format": "gguf", "dtype": "q8_0", "bytes": file.stat().st_size},
    )
    assert gguf.GGUFReader(file).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    code, _, err = muomni("export", nano_folder, "--format", "gguf", "--out", file)
    assert code == 2 and "--force" in err
    assert muomni("export", nano_folder, "--format", "gguf", "--out", file, "--force")[0] == 0
    assert gguf.GGUFReader(file).fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32
    # Without --dtype a bf16 model stays one.
    MuOmni.from_pretrained(nano_folder, device="cpu", dtype=torch.bfloat16).save_pretrained(tmp_path / "low")
    muomni("export", tmp_path / "low", "--format", "gguf", "--out", file, "--force")
    assert gguf.GGUFReader(file).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_BF16


def test_export_mistakes(muomni: Any, nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, *args: object) -> None:
        code, out, err = muomni("export", nano_folder, *args)
        assert (code, out) == (2, "") and message in err, err

    refused("q8_0 is for --format gguf", "--dtype", "q8_0", "--out", tmp_path / "x")
    refused("writes a file", "--format", "gguf", "--out", tmp_path)
    monkeypatch.setattr("muomni.formats.gguf.find_spec", lambda name: None)
    refused("pip install 'muomni[gguf]'", "--format", "gguf", "--out", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
