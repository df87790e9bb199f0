"""Cases that take turns, and what their rounds say."""

from typing import Any

import pytest

from muomni.accel.measurements.statistics import interval_of
from muomni.bench.rounds import noisiest, speed_verdict, take_turns


class Process:
    """Answers with its name and what it was told."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self.order.append(self.name)
        return {"name": self.name, **command}


def test_every_round_begins_with_another_case() -> None:
    order: list[str] = []
    updates: list[str] = []
    processes: Any = {name: Process(name, order) for name in "abc"}
    answers = take_turns(processes, 5, updates.append, lambda turns: turns == 3, {"steps": 2})
    assert "".join(order) == "abc" + "bca" + "cab" and updates[-1] == "round 3 of 5"
    assert answers == {name: [{"name": name, "steps": 2}] * 3 for name in "abc"}
    assert take_turns({}, 2, updates.append) == {}


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
