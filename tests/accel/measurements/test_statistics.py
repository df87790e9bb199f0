"""When a difference counts, over synthetic timings: three runs never contradict one another, whatever the noise."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.accel.measurements.statistics import (
    MARGIN,
    Interval,
    contradictions,
    decide,
    interval_of,
    margin_of,
    noise_of,
    ratios_of,
)

ROUNDS = 5


def one_run(draw: random.Random, ratio: float, noise: float, lasting: float, memory: float | None = None) -> str:
    """The verdict of one run on a technique that is truly `ratio` times as fast.

    Args:
        noise: of a single timing, with bursts of other work that only slow down.
        lasting: by which a process differs for as long as it lives.
    """

    def speeds(true: float) -> list[float]:
        own = true * math.exp(draw.gauss(0, lasting))
        burst = [draw.choice((1.0, 1.0, 1.0, 1 / (1 + 5 * noise * draw.random()))) for _ in range(ROUNDS)]
        return [own * math.exp(draw.gauss(0, noise)) * slow * drift for slow, drift in zip(burst, drifts, strict=True)]

    drifts = [1 + 0.3 * draw.random() for _ in range(ROUNDS)]  # hits all cases of a round alike
    off, twin, on = speeds(100.0), speeds(100.0), speeds(100.0 * ratio)
    margin = margin_of(ratios_of(twin, off))
    return decide(interval_of(ratios_of(on, off)), memory, True, margin).verdict


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("ratio", [0.6, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 2.0])
@pytest.mark.parametrize("memory", [None, 0.5])
def test_three_runs_on_one_machine_never_contradict_one_another(noise, ratio, memory):
    draw = random.Random(0)
    for _ in range(100):
        runs: list[Any] = [{"it": one_run(draw, ratio, noise, lasting=0.015, memory=memory)} for _ in range(3)]
        assert contradictions(runs) == []


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.2])
def test_no_difference_is_seldom_called_one(noise):
    draw = random.Random(1)
    verdicts = [one_run(draw, 1.0, noise, lasting=0.01) for _ in range(600)]
    assert sum(verdict != "no difference" for verdict in verdicts) <= 6


def test_real_differences_are_found_on_a_quiet_machine():
    draw = random.Random(2)
    for ratio, verdict in ((1.3, "on"), (0.75, "off"), (2.0, "on")):
        verdicts = [one_run(draw, ratio, noise=0.02, lasting=0.01) for _ in range(200)]
        assert verdicts.count(verdict) >= 190, ratio


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_the_interval_holds_the_median_and_turns_with_the_ratio(ratios):
    found, turned = interval_of(ratios), interval_of([1 / ratio for ratio in ratios])
    assert 0 < found.low <= found.high
    assert turned.low == pytest.approx(1 / found.high) and turned.high == pytest.approx(1 / found.low)
    if len(ratios) < 9:  # far outliers of many rounds may pull the mean from the median
        assert found.low * (1 - 1e-9) <= found.middle <= found.high * (1 + 1e-9)


def test_one_round_is_no_interval_and_sides_must_match():
    with pytest.raises(ValueError, match="at least 2"):
        interval_of([1.0])
    with pytest.raises(ValueError, match="argument 2"):
        ratios_of([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("interval", "memory", "holds", "verdict", "word"),
    [
        (Interval(1.5, 1.3, 1.7), 2.0, True, "on", "faster"),
        (Interval(1.5, 1.04, 1.7), 1.0, True, "no difference", "noise"),
        (Interval(1.0, 0.99, 1.01), 1.0, True, "no difference", "as fast"),
        (Interval(0.7, 0.6, 0.8), 0.4, True, "off", "60% less memory: for when memory is short"),
        (Interval(0.7, 0.6, 0.8), 1.0, True, "off", "slower"),
        (Interval(1.0, 0.97, 1.03), 0.5, True, "on", "50% less memory, as fast"),
        (Interval(0.92, 0.90, 0.94), 0.5, True, "no difference", "50% less memory, at little or no cost"),
        (Interval(0.92, 0.90, 0.94), 1.0, True, "off", "slower"),
        (Interval(1.0, 0.80, 1.20), 0.5, True, "no difference", "50% less memory; in speed within the noise"),
        (Interval(3.0, 2.9, 3.1), 0.5, False, "off", "results differ"),
    ],
)
def test_verdicts(interval, memory, holds, verdict, word):
    found = decide(interval, memory, holds)
    assert found.verdict == verdict and word in found.reason


def test_a_case_that_differs_from_itself_widens_the_margin_and_is_said_to_be_noise():
    assert margin_of([]) == margin_of([1.01, 0.99, 1.0]) == MARGIN
    assert margin_of([1.2, 1.2, 1.2]) == pytest.approx(0.2)
    assert margin_of([0.8, 0.8, 0.8]) == pytest.approx(0.2)
    assert noise_of("it", [100, 101, 99], [1.0, 1.01]) == []
    spread, twin = noise_of("it", [100, 140, 99], [1.2, 1.2])
    assert "41% apart" in spread and "20%" in twin


def test_contradictions_are_on_against_off_only():
    runs: list[Any] = [{"a": "on", "b": "off"}, {"a": "no difference", "b": "not measured"}, {"a": "on"}]
    assert contradictions(runs) == []
    assert contradictions([*runs, {"b": "on"}]) == ["b: off, not measured, not measured, on"]
