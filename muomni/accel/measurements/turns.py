"""Subjects in processes of their own take turns, so that what slows the machine for a while slows all alike.

A process runs `accel.measurements.worker`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from muomni.accel.measurements.worker import Answer

Key = TypeVar("Key")


class Process(Protocol):
    """A child that runs `accel.measurements.worker`."""

    def ask(self, command: dict[str, Any]) -> Answer:
        """Sends a command and waits for its answer."""


def take_turns(
    processes: Mapping[Key, Process],
    rounds: int,
    on_update: Callable[[str], None],
    enough: Callable[[int], bool] = lambda _: False,
    command: Mapping[str, Any] | None = None,
) -> dict[Key, list[Answer]]:
    """Asks every process once a round, each round beginning with another one: A B C, B C A, ...

    Args:
        processes: by name.
        rounds: at most.
        on_update: called after each round.
        enough: called after each round with the number of rounds; true ends the measurement.
        command: what every process is told each round; None: nothing.

    Returns:
        The answers by name, all of the same number.
    """
    names = list(processes)
    answers: dict[Key, list[Answer]] = {name: [] for name in names}
    for turn in range(rounds if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            answers[name].append(processes[name].ask(dict(command or {})))
        on_update(f"round {turn + 1} of {rounds}")
        if enough(turn + 1):
            break
    return answers
