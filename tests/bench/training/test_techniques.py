"""The table of techniques: complete, each row measured or with a reason, and its cases compute the same thing."""

import json
import math
from typing import Any

import pytest
import torch

from muomni.accel.compile import blocks as compilation
from muomni.accel.technique import TECHNIQUES, measured_by
from muomni.bench.training import techniques as module
from muomni.bench.training.case import TrainCase, TrainSubject, build, check, fingerprint
from muomni.bench.training.compare import Measured
from muomni.cli import main
from muomni.config import preset
from muomni.errors import ConfigError

TRAINING = measured_by("training step", mode="table")
COMMON = {"thinker": preset("nano").thinker, "batch_size": 4, "seq_len": 16, "device": "cpu"}


def case(**more: object) -> TrainCase:
    return TrainCase.model_validate({"name": "it", **COMMON, **more})


def gradients(**more: object) -> dict[str, torch.Tensor]:
    built = build(case(**more))
    built.backward()
    parameters = built.model.named_parameters()
    return {name.removeprefix("model."): p.grad for name, p in parameters if p.grad is not None}


@pytest.mark.parametrize("loss", ["logits", "torch", "torch chunked"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_has_the_same_gradients(loss, precision):
    if precision == "bf16":
        try:
            check(case(precision="bf16"))
        except ConfigError as error:
            pytest.skip(str(error))
    try:
        check(case(loss=loss))
    except ConfigError as error:
        pytest.skip(str(error))
    exact, found = gradients(), gradients(loss=loss, precision=precision)
    plain = gradients(precision=precision)
    for name, right in exact.items():
        allowed = 2 * (plain[name] - right).norm() + 1e-4 * right.norm()
        assert (found[name] - right).norm() <= allowed, name


def test_attention_is_the_one_that_was_asked_for():
    model = build(case(attention="reference")).model
    assert {type(m.attend).__name__ + m.attend.__name__ for m in model.modules() if hasattr(m, "attend")} == {
        "functionattention_reference"
    }
    assert "attention_reference" not in {
        m.attend.__name__ for m in build(case()).model.modules() if hasattr(m, "attend")
    }


def test_every_way_to_compute_adamw_takes_the_same_steps():
    sketches = {
        how: TrainSubject(case(adamw=how, updates=True)).first["updates"]["sketch"]
        for how in ("fused", "foreach", "for-loop")
    }
    size = math.hypot(*sketches["fused"])
    assert size > 0
    for how in ("foreach", "for-loop"):
        assert math.dist(sketches[how], sketches["fused"]) < 1e-4 * size
    muon = TrainSubject(case(optimizer="muon", updates=True)).first["updates"]["sketch"]
    assert math.dist(muon, sketches["fused"]) > 0.1 * size
    assert "updates" not in TrainSubject(case()).first


def test_a_sketch_is_linear():
    a, b = torch.randn(1000), torch.randn(1000)
    sketches = [torch.tensor(fingerprint([x])["sketch"]) for x in (a, b, a + b)]
    torch.testing.assert_close(sketches[0] + sketches[1], sketches[2], rtol=1e-4, atol=1e-4)


def fake_compare(cases: list[TrainCase], rounds: int, steps: int) -> list[Measured]:
    for each in cases:
        check(each)  # what cannot run must not get here
    return [
        Measured(c.name, 100.0, 99.0, 101.0, 50.0, 0.1, 1.0, 0.9, 1.1, 1.0, True, 0.0, "no difference")
        if not c.updates
        else Measured(c.name, 90.0, 89.0, 91.0, 50.0, 0.1, 0.9, 0.8, 1.1, 1.0, True, 0.0, "slower", False, 1e-3)
        for c in cases
    ]


def test_the_table_is_complete_and_json_comes_last(monkeypatch, capsys):
    monkeypatch.setattr(module, "compare", fake_compare)
    monkeypatch.setattr(module, "pick_device", lambda _name: torch.device("cpu"))
    monkeypatch.setattr(compilation, "what_is_missing", lambda _device: "no C++ compiler is here")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "train", "--shape", "nano", "--seq-len", "16", "--rounds", "2", "--steps", "1"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])["techniques"]
    assert [row["technique"] for row in rows] == [technique.title for technique in TRAINING]
    assert all((row["on"] is None) == (row["off"] is None) == (row["not_measured"] is not None) for row in rows)
    reasons = {row["technique"]: row["not_measured"] for row in rows if row["not_measured"]}
    assert "a CPU has no fast fp16" in reasons["mixed precision, fp16"]
    assert all("no C++ compiler" in reasons[f"torch.compile of the {what}"] for what in ("blocks", "whole model"))
    assert "FlexAttention" in reasons
    measured = {row["technique"] for row in rows} - set(reasons)
    assert {"gradient accumulation, 4 micro-batches", "fused AdamW for a loop", "Muon for AdamW"} <= measured
    assert {"flash attention", "packed documents of 100 tokens"} <= measured
    for technique in TRAINING:
        assert technique.title.split()[0] in out
    assert "updates" in out and "1.0e-03" in out and "bit-equal" in out


def test_families_share_what_they_are_compared_with():
    families: dict[str, Any] = {}
    for technique in TRAINING:
        family = technique.family or technique.key
        assert families.setdefault(family, technique.off_settings) == technique.off_settings
    for what in ("key", "title"):
        assert len({getattr(technique, what) for technique in TECHNIQUES}) == len(TECHNIQUES)
