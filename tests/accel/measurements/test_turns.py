"""Every round begins with another subject."""

from typing import Any

from muomni.accel.measurements.turns import take_turns


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
