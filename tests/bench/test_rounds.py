"""What the rounds of cases say."""

import pytest

from muomni.accel.measurements.statistics import interval_of
from muomni.bench.rounds import noisiest, speed_verdict


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.2, 1.21, 1.19, 1.2], "faster"),
        ([0.8, 0.81, 0.79, 0.8], "slower"),
        ([1.3, 1.4, 0.99], "no difference"),
        ([1.0, 1.0], "no difference"),
    ],
)
def test_a_difference_is_claimed_only_beyond_the_noise(ratios: list[float], verdict: str) -> None:
    assert speed_verdict(interval_of(ratios)) == verdict


def test_the_noisiest_case_is_named() -> None:
    assert noisiest({"a": [10.0, 11.0], "b": [10.0, 10.0]}) == []
    assert noisiest({"a": [10.0, 11.0], "b": [10.0, 14.0]}) == ["rounds of b are 33% apart"]
