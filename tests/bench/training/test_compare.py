"""The bench's machinery: real processes on a model of no size, and how it compares gradients."""

import pytest

from muomni.bench.training.case import TrainCase
from muomni.bench.training.compare import compare
from muomni.config import preset
from muomni.errors import MuOmniError

COMMON = {"thinker": preset("nano").thinker, "batch_size": 4, "seq_len": 16}


def case(name: str, **more: object) -> TrainCase:
    return TrainCase.model_validate({"name": name, **COMMON, **more})


def test_cases_take_turns_and_say_how_their_gradients_compare():
    said: list[str] = []
    cases = [
        case("plain"),
        case("checkpointed", checkpointing="full"),
        case("logits", loss="logits"),
        case("muon", optimizer="muon"),
    ]
    plain, checkpointed, logits, muon = compare(cases, rounds=2, steps=1, say=said.append)
    assert plain.verdict == "no difference" and plain.ratio == 1.0
    assert checkpointed.gradients_equal and checkpointed.gradient_error == 0
    assert not logits.gradients_equal and 0 < logits.gradient_error < 1e-4
    assert muon.gradients_equal
    assert all(m.tokens_per_s > 0 and m.peak_mib > 50 and m.first_step_s > 0 for m in (plain, muon))
    assert said[-1] == "round 2 of 2"


def test_a_case_that_cannot_be_built_is_named():
    with pytest.raises(MuOmniError, match="case 'bad' cannot be measured here"):
        compare([case("bad", device="cuda" if not _has_gpu() else "mps")], rounds=1, steps=1)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
