"""Cases side by side: each in its own process, taking turns, so that a drift of the machine hits all alike."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from muomni.bench.cases import TrainCase
from muomni.bench.process import CaseProcess

Verdict = Literal["faster", "slower", "no difference"]


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
    verdict: Verdict
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
    speeds: list[list[float]] = [[] for _ in cases]
    flops: list[list[float]] = [[] for _ in cases]
    peaks = [0.0] * len(cases)
    workers: list[CaseProcess] = []
    try:
        for case in cases:
            say(f"setting up {case.name}")
            worker = CaseProcess("train", case.name, case.model_dump(mode="json"))
            workers.append(worker)
        for turn in range(rounds):
            for index, worker in enumerate(workers):
                answer = worker.ask({"steps": steps})
                speeds[index].append(cases[index].tokens / statistics.median(answer["times_s"]))
                flops[index].append(statistics.mean(answer["flops"]) / cases[index].tokens)
                peaks[index] = max(peaks[index], answer["peak_bytes"] / 2**20)
            say(f"round {turn + 1} of {rounds}")
    finally:
        for worker in workers:
            worker.close()
    figures = [_Figures(speeds[i], peaks[i], workers[i], statistics.mean(flops[i])) for i in range(len(cases))]
    return [
        _measured(case.name, own, figures[baseline], i == baseline)
        for i, (case, own) in enumerate(zip(cases, figures, strict=True))
    ]


@dataclass(frozen=True)
class _Figures:
    """What a case's rounds gave."""

    speeds: list[float]
    peak: float
    worker: CaseProcess
    flops_per_token: float


def _measured(name: str, own: _Figures, base: _Figures, is_baseline: bool) -> Measured:
    speeds = own.speeds
    ratios = [speed / other for speed, other in zip(speeds, base.speeds, strict=True)]
    gradients, reference = own.worker.first["gradients"], base.worker.first["gradients"]
    updates, reference_updates = own.worker.first.get("updates"), base.worker.first.get("updates", {})
    quartiles = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else [speeds[0]] * 3
    return Measured(
        name=name,
        tokens_per_s=statistics.median(speeds),
        low=quartiles[0],
        high=quartiles[2],
        peak_mib=own.peak,
        first_step_s=own.worker.first["first_step_s"],
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        memory_ratio=own.peak / base.peak,
        gradients_equal=gradients["sha256"] == reference["sha256"],
        gradient_error=_error(gradients, reference),
        verdict="no difference" if is_baseline else verdict_of(ratios),
        updates_equal=None if updates is None else updates["sha256"] == reference_updates["sha256"],
        update_error=None if updates is None else _error(updates, reference_updates),
        flops_per_token=own.flops_per_token,
    )


def _error(found: dict[str, Any], reference: dict[str, Any]) -> float:
    return math.dist(found["sketch"], reference["sketch"]) / math.hypot(*reference["sketch"])


def verdict_of(ratios: Sequence[float]) -> Verdict:
    """What the rounds' ratios of speed say: a difference only where all of them lie on one side of 1."""
    if min(ratios) > 1:
        return "faster"
    return "slower" if max(ratios) < 1 else "no difference"
