"""Subjects in processes of their own that take turns, so that what slows the machine for a while slows all alike.

A child answers with `Worker`: the first command sets its subject up, every other is a turn. The parent asks all
children with `take_turns`. Importing this imports no torch: a child's memory is that of its subject.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from muomni.errors import MemoryShortageError, UserError

Answer = dict[str, Any]
Key = TypeVar("Key")


class Subject(Protocol):
    """What is measured, set up.

    Attributes:
        first: the answer to setting it up.
    """

    first: Answer

    def turn(self, *args: Any, **command: Any) -> Answer:
        """Does what the command asks; everything in it and in the answer is a JSON value."""


class Worker:
    """Answers commands, for `child_process.serve`.

    What cannot be measured here is answered with `refused`, the reason, and with `short` where memory ran out. Any
    other error is raised, and ends the process.

    Args:
        set_up: makes the subject; called with the keys of the first command.
    """

    def __init__(self, set_up: Callable[..., Subject]) -> None:
        self._set_up = set_up
        self._subject: Subject | None = None

    def __call__(self, command: dict[str, Any]) -> Answer:
        try:
            if self._subject is None:
                self._subject = self._set_up(**command)
                return self._subject.first
            return self.turn(self._subject, command)
        except MemoryShortageError as error:
            return {"refused": _first_line(error), "short": True}
        except UserError as error:
            return {"refused": str(error)}
        except (MemoryError, RuntimeError) as error:
            from muomni.accel.memory.out_of_memory import find_shortage

            if find_shortage(error, "forward") is None:
                raise
            return {"refused": f"memory ran out: {_first_line(error)}", "short": True}

    def turn(self, subject: Subject, command: dict[str, Any]) -> Answer:
        """The answer to a turn."""
        return subject.turn(**command)


class Process(Protocol):
    """A child with a `Worker`."""

    def ask(self, command: dict[str, Any]) -> Answer:
        """Sends a command and waits for its answer."""


def take_turns(
    processes: Mapping[Key, Process],
    rounds: int,
    on_update: Callable[[str], None],
    enough: Callable[[int], bool] = lambda turns: False,
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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
