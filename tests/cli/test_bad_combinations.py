"""What cannot work together is refused by name, with exit code 2, before a model or a tokenizer is made."""

import shutil

import pytest
import torch

from muomni.accel import execution_plan
from muomni.accel.compile import blocks as compilation
from muomni.cli import main
from muomni.errors import ConfigError
from muomni.model import OmniModel
from muomni.training import setup as assemble


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)


def on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_plan, "pick_device", lambda _name: torch.device("mps"))


def as_it_is(_monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "machine", "message"),
    [
        ("precision=fp16", as_it_is, 'precision = "fp16": a CPU has no fast fp16'),
        ("compile=blocks", no_compiler, 'compile = "blocks": no C++ compiler'),
        ("compile=full", no_compiler, 'compile = "full": no C++ compiler'),
        ("compile=full", on_mps, 'compile = "full": torch.compile is not used on mps'),
        ("attention=varlen", as_it_is, 'attention = "varlen"'),
        ("attention=flash_attn", as_it_is, 'attention = "flash_attn"'),
        ("attention=flex", as_it_is, 'attention = "flex"'),
        ("parallel=fsdp", as_it_is, 'parallel = "fsdp": there is one process'),
        ("parallel=ddp", as_it_is, 'parallel = "ddp": there is one process'),
    ],
)
def test_it_is_refused_before_anything_is_allocated(monkeypatch, tmp_path, capsys, change, machine, message):
    def must_not(*_: object, **__: object) -> None:
        raise AssertionError("this came too late")

    monkeypatch.setattr(OmniModel, "__init__", must_not)
    monkeypatch.setattr(assemble, "prepare_tokenizer", must_not)
    monkeypatch.setattr(assemble, "prepare_rows", must_not)
    machine(monkeypatch)
    (tmp_path / "text.txt").write_text("A few words. " * 100)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        data = ["--data", str(tmp_path / "text.txt"), "--out", str(out)]
        main(["train", "text-nano", *data, "--set", "device=cpu", "--set", change])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert message in " ".join(said.split()) and "Traceback" not in said
    assert not out.exists()


def test_the_test_sees_what_is_made_too_early(monkeypatch, tmp_path):
    """With nothing wrong, the run gets as far as the tokenizer: the check above can fail."""

    def must_not(*_: object, **__: object) -> None:
        raise AssertionError("this came too late")

    monkeypatch.setattr(assemble, "prepare_tokenizer", must_not)
    (tmp_path / "text.txt").write_text("A few words. " * 100)
    with pytest.raises(AssertionError, match="too late"):
        main(["train", "text-nano", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("mode", ["blocks", "full"])
def test_a_device_without_a_compiler_refuses_a_named_mode(mode):
    with pytest.raises(ConfigError, match="not used on mps"):
        compilation.choose(mode, torch.device("mps"))
