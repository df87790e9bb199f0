"""Schedules by their landmarks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.config.recipe import ScheduleSpec
from muomni.training.optim.lr_schedule import lr_factors


@given(
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.integers(0, 30),
    more=st.integers(1, 100),
    floor=st.floats(0, 1),
)
def test_every_schedule_stays_between_zero_and_one_and_warms_up_linearly(kind, warmup, more, floor):
    total = warmup + more
    spec = ScheduleSpec(kind=kind, warmup_steps=warmup, min_lr_ratio=floor, decay_fraction=0.2)
    factors = lr_factors(spec, total)
    assert len(factors) == total + 1
    assert bool(((factors >= 0) & (factors <= 1 + 1e-12)).all())
    if kind != "wsd":  # wsd may begin to fall before a long warm-up is over
        torch.testing.assert_close(factors[:warmup], (torch.arange(warmup, dtype=torch.float64) + 1) / max(1, warmup))


def test_cosine_is_halfway_in_the_middle_and_ends_at_the_floor():
    factors = lr_factors(ScheduleSpec(kind="cosine", warmup_steps=0, min_lr_ratio=0.2), 101)
    assert factors[0] == 1
    assert factors[50].item() == pytest.approx(0.6)
    assert factors[100].item() == pytest.approx(0.2)


def test_wsd_is_stable_and_then_falls_linearly():
    spec = ScheduleSpec(kind="wsd", warmup_steps=10, min_lr_ratio=0.0, decay_fraction=0.2)
    factors = lr_factors(spec, 100)
    assert bool((factors[10:79] == 1).all())
    falls = factors[81:99] - factors[80:98]
    torch.testing.assert_close(falls, torch.full_like(falls, -0.05))
    assert factors[99].item() == pytest.approx(0.0)


def test_constant_stays():
    assert bool((lr_factors(ScheduleSpec(kind="constant", warmup_steps=0), 7) == 1).all())
