"""Cases in processes of their own that take turns, so that a drift of the machine hits all alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Protocol

from muomni.accel.measurements.statistics import NOISY_SPREAD, Interval, decide, spread_of
from muomni.bench.process import CaseProcess, Kind, RefusedError

Answer = dict[str, Any]
Update = Callable[[str], None]
SpeedVerdict = Literal["faster", "slower", "no difference"]


class Case(Protocol):
    """What a process is given."""

    @property
    def name(self) -> str: ...

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:
        """The fields as JSON values."""


def open_cases(
    stack: ExitStack, kind: Kind, cases: Sequence[Case], on_update: Update, threads: int | None = None
) -> tuple[dict[str, CaseProcess], dict[str, str]]:
    """Starts a process for each case.

    Args:
        stack: closes them.
        kind: of all cases.
        cases: of different names.
        on_update: called with each case's name before it starts.
        threads: of every library in the processes; None leaves them their own choice.

    Returns:
        The processes by their cases' names, and the names of cases that cannot be measured here, with the reason.
    """
    processes, unmeasured = {}, {}
    for case in cases:
        on_update(f"setting up {case.name}")
        try:
            process = CaseProcess(kind, case.name, case.model_dump(mode="json"), threads)
        except RefusedError as error:
            unmeasured[case.name] = error.reason
        else:
            processes[case.name] = stack.enter_context(process)
    return processes, unmeasured


def take_turns(
    processes: Mapping[str, CaseProcess],
    rounds: int,
    on_update: Update,
    enough: Callable[[int], bool] = lambda turns: False,
    command: Mapping[str, Any] | None = None,
) -> dict[str, list[Answer]]:
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
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    for turn in range(rounds if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            answers[name].append(processes[name].ask(dict(command or {})))
        on_update(f"round {turn + 1} of {rounds}")
        if enough(turn + 1):
            break
    return answers


def speed_verdict(ratio: Interval) -> SpeedVerdict:
    """The verdict of `statistics.decide` on speed alone, as tables have it."""
    words: dict[str, SpeedVerdict] = {"on": "faster", "off": "slower"}
    return words.get(decide(ratio, None, holds=True).verdict, "no difference")


def noisiest(speeds: Mapping[str, Sequence[float]]) -> list[str]:
    """The name whose rounds are furthest apart, in words; empty where all are close together."""
    name = max(speeds, key=lambda name: spread_of(speeds[name]))
    spread = spread_of(speeds[name])
    return [f"rounds of {name} are {spread:.0%} apart"] if spread > NOISY_SPREAD else []


def peak_mib(answers: Sequence[Answer]) -> float:
    """The largest peak of memory over the rounds, in MiB."""
    return float(max(answer["peak_bytes"] for answer in answers)) / 2**20
