"""Rows with media: the same work for the Thinker, another layout every step, and a verdict beside the FLOPs."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from muomni.bench.training import media_overhead as module
from muomni.bench.training.case import TrainCase, TrainSubject, build, check
from muomni.bench.training.compare import Measured
from muomni.bench.training.media_overhead import MediaCost, media_cases
from muomni.bench.training.synthetic_batches import AUDIO, IMAGE, draw_rows
from muomni.cli import main
from muomni.config import encoder_configs, preset
from muomni.errors import ConfigError
from muomni.model.flops import model_flops
from muomni.ops.cross_entropy import IGNORE

VISION, AUDIO_ENCODER = encoder_configs("nano")
COMMON = {"thinker": preset("nano").thinker, "batch_size": 4, "seq_len": 128, "device": "cpu", "precision": "fp32"}


def rows(kind: Any, number: int = 0):
    return draw_rows(kind, 4, 128, 8192, VISION, AUDIO_ENCODER, number)


def test_the_thinkers_work_is_the_same_whatever_stands_in_the_places():
    text = rows("text")
    for kind in ("pictures", "clips", "mixed"):
        other = rows(kind)
        assert torch.equal(other.cu_seqlens, text.cu_seqlens) and torch.equal(other.labels, text.labels)
        places = (other.input_ids == IMAGE) | (other.input_ids == AUDIO)
        assert bool(places.any()) and bool((other.labels[places] == IGNORE).all())
        assert torch.equal(other.input_ids[~places], text.input_ids[~places])
        assert not bool(((text.input_ids == IMAGE) | (text.input_ids == AUDIO)).any())
        assert other.num_targets == text.num_targets > 0


def test_every_step_has_a_layout_of_its_own():
    assert torch.equal(rows("mixed", 3).input_ids, rows("mixed", 3).input_ids)
    assert rows("mixed", 3).media.images.grids != rows("mixed", 4).media.images.grids
    built = build(TrainCase.model_validate(COMMON | {"name": "it", "media": "pictures"} | _encoders()))
    first = built.flops()
    built.renew()
    assert built.flops() != first


def test_media_fill_their_places_and_are_learnt_from():
    for case in media_cases(COMMON, VISION, AUDIO_ENCODER):
        built = build(case)
        built.backward()  # the model compares places and features
        missing = [name for name, p in built.model.named_parameters() if p.grad is None]
        assert not missing, missing
    assert case.losses == {"contrastive": 0.2, "ctc": 0.3}


def test_flops_come_with_the_times():
    text, *others = media_cases(COMMON, VISION, AUDIO_ENCODER)
    found = {case.name: TrainSubject(case).turn(least=1)["flops"][0] for case in (text, *others)}
    # Set-up takes steps 0 to 2.
    lengths = rows("text", 3).cu_seqlens.diff().tolist()
    assert found[text.name] == model_flops(text.model, lengths)["thinker"].training
    extra = {name: flops - found[text.name] for name, flops in found.items()}
    assert 0 < extra["clips"] < extra["pictures and clips"] < extra["pictures"]
    assert extra["pictures and clips"] < extra["the same, with CTC and contrastive losses"]


def figures(ratio: float, low: float, high: float) -> Measured:
    return Measured("it", 100.0, 99.0, 101.0, 50.0, 0.1, ratio, low, high, 1.0, True, 0.0, "slower")


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.5, 0.4, 0.8), "no slower than FLOPs explain"),  # one round of 1.25×, which 1.5× explains
        ((0.5, 0.4, 0.6), "33% slower than FLOPs explain (11% to 67%)"),
        ((0.8, 0.7, 0.9), "no slower than FLOPs explain"),
    ],
)
def test_an_excess_is_claimed_only_where_every_round_has_one(ratios, verdict):
    assert MediaCost(figures(*ratios), 1.5).verdict == verdict


def test_the_table_and_the_json_line(monkeypatch, capsys):
    def fake(cases, rounds, steps, say):
        return [figures(1.0, 1.0, 1.0) if c.media == "text" else figures(0.5, 0.4, 0.6) for c in cases]

    monkeypatch.setattr(module, "compare", lambda *a, **k: [_with_flops(m) for m in fake(*a, **k)])
    with pytest.raises(SystemExit) as stop:
        main(["bench", "train", "--shape", "nano", "--seq-len", "128", "--no-techniques"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])["media"]
    assert len(found) == 5 and found[1]["slowdown"] == [2.0, 1.6667, 2.5] and found[1]["explained"] == 1.0
    assert "2.00× (1.67–2.50)" in out and "100% slower" in out


def _with_flops(measured: Measured) -> Measured:
    return replace(measured, flops_per_token=7.0)


def test_rows_that_are_too_short_are_not_measured(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "train", "--shape", "nano", "--seq-len", "16", "--no-techniques", "--json"])
    assert stop.value.code == 0
    assert "hold no picture" in json.loads(capsys.readouterr().out)["media"]["not_measured"]


@pytest.mark.parametrize("more", [{"accumulation": 2}, {"documents": 8}, {"loss": "logits"}])
def test_what_does_not_go_together_is_refused(more):
    with pytest.raises(ConfigError, match="do not go together"):
        check(TrainCase.model_validate(COMMON | {"name": "it", "media": "clips"} | _encoders() | more))
    with pytest.raises(ConfigError, match="both encoders"):
        check(TrainCase.model_validate(COMMON | {"name": "it", "media": "clips"}))


def _encoders() -> dict[str, object]:
    return {"vision": VISION, "audio": AUDIO_ENCODER}
