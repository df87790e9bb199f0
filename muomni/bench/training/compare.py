"""Cases side by side: each in its own process, taking turns, so that a drift of the machine hits all alike."""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from muomni.accel.measurements.statistics import interval_of, ratios_of
from muomni.accel.measurements.turns import take_turns as ask_in_turns
from muomni.bench.process import RefusedError
from muomni.bench.rounds import SpeedVerdict, open_cases, peak_mib, speed_verdict
from muomni.bench.training.case import TrainCase


@dataclass(frozen=True)
class Measured:
    """Figures of one case.

    Attributes:
        name: the case's.
        tokens_per_s: median over rounds; `low` and `high` are the quartiles.
        peak_mib: peak memory while stepping.
        first_step_s: building, compiling and the first step.
        ratio: tokens/s over the baseline's, see `statistics.interval_of`; `ratio_low`, `ratio_high` its interval.
        memory_ratio: peak memory over the baseline's.
        gradients_equal: bit-equal to the baseline's, on the same weights and rows.
        gradient_error: 2-norm of the difference over the baseline's 2-norm, estimated from sketches.
        updates_equal, update_error: the same of what three steps changed in the weights; None where not asked for.
        verdict: against the baseline; see `statistics.decide`.
        flops_per_token: floating-point operations of a step by its tokens, as `model.flops` counts them.
    """

    name: str
    tokens_per_s: float
    low: float
    high: float
    peak_mib: float
    first_step_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    memory_ratio: float
    gradients_equal: bool
    gradient_error: float
    verdict: SpeedVerdict
    updates_equal: bool | None = None
    update_error: float | None = None
    flops_per_token: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def compare(
    cases: Sequence[TrainCase],
    rounds: int,
    steps: int,
    baseline: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measures the cases in turns: A B C, A B C, ...

    Args:
        cases: all of them stay in memory at once.
        rounds: turns; each gives one figure per case, the median of its steps.
        steps: optimizer steps in a turn.
        baseline: index of the case the others are compared with.
        say: told what is going on.
    """
    taken = take_turns(cases, rounds, steps, say)
    base = taken[cases[baseline].name]
    return [measured(name, own, base) for name, own in taken.items()]


@dataclass(frozen=True)
class CaseMetrics:
    """What a case's rounds gave.

    Attributes:
        speeds: tokens/s, one a round.
        peak_mib: peak memory while stepping.
        first: what setting it up gave, see `cases.TrainSubject`.
        flops_per_token: see `Measured`.
    """

    speeds: list[float]
    peak_mib: float
    first: dict[str, Any]
    flops_per_token: float


def take_turns(
    cases: Sequence[TrainCase],
    rounds: int,
    steps: int,
    say: Callable[[str], None] = lambda _: None,
    refused: dict[str, str] | None = None,
    enough: Callable[[int], bool] = lambda _: False,
) -> dict[str, CaseMetrics]:
    """Runs the cases in turns, each turn beginning with another case; see `compare`.

    Args:
        cases: of different names.
        rounds: see `compare`.
        steps: see `compare`.
        say: see `compare`.
        refused: where given, a case that cannot be set up here is left out, and noted in it with the reason.
        enough: told after each turn how many there were; true ends the measurement before all rounds are taken.

    Returns:
        By name, all with the same number of rounds.
    """
    with ExitStack() as stack:
        processes, unmeasured = open_cases(stack, "training.case:TrainSubject.of", cases, say)
        if refused is not None:
            refused |= unmeasured
        elif unmeasured:
            raise RefusedError(*next(iter(unmeasured.items())))
        answers = ask_in_turns(processes, rounds, say, enough, {"least": steps})
    by_name = {case.name: case for case in cases}
    return {name: _figures(by_name[name], processes[name].first, answers[name]) for name in processes}


def _figures(case: TrainCase, first: dict[str, Any], turns: Sequence[dict[str, Any]]) -> CaseMetrics:
    return CaseMetrics(
        [case.tokens / statistics.median(turn["step_s"]) for turn in turns],
        peak_mib(turns),
        first,
        statistics.mean(statistics.mean(turn["flops"]) for turn in turns) / case.tokens,
    )


def measured(name: str, own: CaseMetrics, base: CaseMetrics) -> Measured:
    """A case's figures beside those of the case that it is compared with, which may be itself."""
    speeds = own.speeds
    ratio = interval_of(ratios_of(speeds, base.speeds))
    gradients, reference = own.first["gradients"], base.first["gradients"]
    updates, reference_updates = own.first.get("updates"), base.first.get("updates", {})
    quartiles = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else [speeds[0]] * 3
    return Measured(
        name=name,
        tokens_per_s=statistics.median(speeds),
        low=quartiles[0],
        high=quartiles[2],
        peak_mib=own.peak_mib,
        first_step_s=own.first["first_step_s"],
        ratio=ratio.middle,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        memory_ratio=own.peak_mib / base.peak_mib,
        gradients_equal=gradients["sha256"] == reference["sha256"],
        gradient_error=_error(gradients, reference),
        verdict=speed_verdict(ratio),
        updates_equal=None if updates is None else updates["sha256"] == reference_updates["sha256"],
        update_error=None if updates is None else _error(updates, reference_updates),
        flops_per_token=own.flops_per_token,
    )


def _error(found: dict[str, Any], reference: dict[str, Any]) -> float:
    return math.dist(found["sketch"], reference["sketch"]) / math.hypot(*reference["sketch"])
