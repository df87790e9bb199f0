"""Cases side by side: each in its own process, taking turns, so that a drift of the machine hits all alike."""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

from muomni.bench.process import CaseProcess, RefusedError
from muomni.bench.training.case import TrainCase

SpeedVerdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Measured:
    """Figures of one case.

    Attributes:
        name: the case's.
        tokens_per_s: median over rounds; `low` and `high` are the quartiles.
        peak_mib: peak memory while stepping.
        first_step_s: building, compiling and the first step.
        ratio: tokens/s over the baseline's, median of the rounds' own ratios; `ratio_low` and
            `ratio_high` are the extremes over the rounds.
        memory_ratio: peak memory over the baseline's.
        gradients_equal: bit-equal to the baseline's, on the same weights and rows.
        gradient_error: 2-norm of the difference over the baseline's 2-norm, estimated from sketches.
        updates_equal, update_error: the same of what three steps changed in the weights; None where not asked for.
        verdict: against the baseline; a difference is claimed only where every round agrees on it.
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
        refused: where given, a case that cannot be set up here is left out, and noted in it with the reason.
        enough: told after each turn how many there were; true ends the measurement before all rounds are taken.

    Returns:
        By name, all with the same number of rounds.
    """
    taken: dict[str, list[dict[str, Any]]] = {}
    workers: list[tuple[TrainCase, CaseProcess]] = []
    with ExitStack() as stack:
        for case in cases:
            say(f"setting up {case.name}")
            try:
                worker = stack.enter_context(CaseProcess("train", case.name, case.model_dump(mode="json")))
            except RefusedError as error:
                if refused is None:
                    raise
                refused[case.name] = error.reason
                continue
            workers.append((case, worker))
            taken[case.name] = []
        for turn in range(rounds if workers else 0):
            for place in range(len(workers)):
                case, worker = workers[(turn + place) % len(workers)]
                taken[case.name].append(worker.ask({"steps": steps}))
            say(f"round {turn + 1} of {rounds}")
            if enough(turn + 1):
                break
    return {case.name: _figures(case, worker.first, taken[case.name]) for case, worker in workers}


def _figures(case: TrainCase, first: dict[str, Any], turns: Sequence[dict[str, Any]]) -> CaseMetrics:
    return CaseMetrics(
        [case.tokens / statistics.median(turn["times_s"]) for turn in turns],
        max(turn["peak_bytes"] for turn in turns) / 2**20,
        first,
        statistics.mean(statistics.mean(turn["flops"]) for turn in turns) / case.tokens,
    )


def measured(name: str, own: CaseMetrics, base: CaseMetrics) -> Measured:
    """A case's figures beside those of the case that it is compared with, which may be itself."""
    speeds = own.speeds
    ratios = [speed / other for speed, other in zip(speeds, base.speeds, strict=True)]
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
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        memory_ratio=own.peak_mib / base.peak_mib,
        gradients_equal=gradients["sha256"] == reference["sha256"],
        gradient_error=_error(gradients, reference),
        verdict="no difference" if own is base else verdict_of(ratios),
        updates_equal=None if updates is None else updates["sha256"] == reference_updates["sha256"],
        update_error=None if updates is None else _error(updates, reference_updates),
        flops_per_token=own.flops_per_token,
    )


def _error(found: dict[str, Any], reference: dict[str, Any]) -> float:
    return math.dist(found["sketch"], reference["sketch"]) / math.hypot(*reference["sketch"])


def verdict_of(ratios: Sequence[float]) -> SpeedVerdict:
    """What the rounds' ratios of speed say: a difference only where all of them lie on one side of 1."""
    if min(ratios) > 1:
        return "faster"
    return "slower" if max(ratios) < 1 else "no difference"
