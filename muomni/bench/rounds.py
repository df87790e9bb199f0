"""Cases in processes of their own that take turns, so that a drift of the machine hits all alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Protocol

from muomni.accel.measurements.statistics import NOISY_SPREAD, Interval, decide, spread_of
from muomni.accel.measurements.worker import Answer
from muomni.bench.process import CaseProcess, RefusedError

Update = Callable[[str], None]
SpeedVerdict = Literal["faster", "slower", "no difference"]


class Case(Protocol):
    """What a process is given."""

    @property
    def name(self) -> str:
        """Shown in tables."""

    def model_dump(self, *, mode: Literal["json"]) -> dict[str, Any]:
        """The fields as JSON values."""


def open_cases(
    stack: ExitStack, subject: str, cases: Sequence[Case], on_update: Update, threads: int | None = None
) -> tuple[dict[str, CaseProcess], dict[str, str]]:
    """Starts a process for each case.

    Args:
        stack: closes them.
        subject: of all cases, see `CaseProcess`.
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
            process = CaseProcess(subject, case.name, case.model_dump(mode="json"), threads)
        except RefusedError as error:
            unmeasured[case.name] = error.reason
        else:
            processes[case.name] = stack.enter_context(process)
    return processes, unmeasured


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
