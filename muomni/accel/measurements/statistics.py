"""When a difference counts: the one rule by which the bench says on, off, or no difference.

Cases take turns, so each round gives one ratio of speeds, and what slows the machine for a while slows both sides.
The logarithms of the ratios have a Student interval of 99%. A technique is faster only where the whole interval
lies beyond a margin, which is 5%, or more where two processes of the very same case differ by more: processes of
one program differ by some percent for as long as they live (where their memory happens to lie), which no number of
rounds shows. A machine that is noisy therefore gives "no difference", not another verdict.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

VerdictName = Literal["on", "off", "no difference", "not measured"]

MARGIN = 0.05
# What a technique that is no faster must save of the memory to be worth its while.
LEAST_SAVING = 0.10
# Rounds of the baseline further apart than this share of their median make the machine noisy.
NOISY_SPREAD = 0.15
LEAST_ROUNDS = 3
# Two-sided 99% quantiles of Student's distribution for 1, 2, ... degrees of freedom, then the normal's.
_STUDENT = (
    *(63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169),
    *(3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845),
)
_NORMAL = 2.576


@dataclass(frozen=True)
class Interval:
    """A ratio.

    Attributes:
        middle: median over rounds.
        low, high: its 99% interval.
    """

    middle: float
    low: float
    high: float


def interval_of(ratios: Sequence[float]) -> Interval:
    """The median of positive ratios, one a round, and the interval of their geometric mean.

    Raises:
        ValueError: there are fewer than two, so that nothing is known of their spread.
    """
    if len(ratios) < 2:
        raise ValueError(f"{len(ratios)} round(s): an interval needs at least 2")
    logs = [math.log(ratio) for ratio in ratios]
    freedom = len(logs) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    # Capped, so that two rounds far apart stay printable; nothing is decided that far out.
    half = min(quantile * statistics.stdev(logs) / math.sqrt(len(logs)), math.log(1e3))
    middle = statistics.fmean(logs)
    return Interval(statistics.median(ratios), math.exp(middle - half), math.exp(middle + half))


def ratios_of(on: Sequence[float], off: Sequence[float]) -> list[float]:
    """Speeds of the same rounds as on / off.

    Raises:
        ValueError: the sides have different numbers of rounds.
    """
    return [a / b for a, b in zip(on, off, strict=True)]


def margin_of(twins: Sequence[float]) -> float:
    """The margin beyond which a difference counts.

    Args:
        twins: the rounds' ratios of two processes of one and the same case; empty where there was only one.
    """
    if not twins:
        return MARGIN
    return max(MARGIN, abs(math.expm1(statistics.median(math.log(ratio) for ratio in twins))))


@dataclass(frozen=True)
class Decision:
    """A verdict with its reason, in words for a table."""

    verdict: VerdictName
    reason: str


def decide(  # noqa: PLR0911 - one for each reason
    speed: Interval, memory_ratio: float | None, holds: bool, margin: float = MARGIN
) -> Decision:
    """The verdict on a technique.

    Faster is on and slower is off. A technique that saves memory is on where it costs no more time than the margin,
    and off only where it costs much more. Between on and off lie at least two margins, wider than what processes
    differ by, so that noise moves a verdict to "no difference" only.

    Args:
        speed: on / off.
        memory_ratio: peak memory on / off; None where it was not measured.
        holds: the results are as close to those without it as its class of equivalence promises.
        margin: see `margin_of`.
    """
    saves = memory_ratio is not None and memory_ratio <= 1 - LEAST_SAVING
    saved = f"{1 - memory_ratio:.0%} less memory" if memory_ratio is not None and saves else ""
    if not holds:
        return Decision("off", "its results differ by more than its class allows")
    if speed.low > 1 + margin:
        return Decision("on", "faster" + (f", {saved}" if saved else ""))
    as_fast = 1 / (1 + margin)
    if saves and speed.low >= as_fast:
        return Decision("on", f"{saved}, as fast")
    if saves and speed.high < as_fast**3:
        return Decision("off", f"slower, but {saved}: for when memory is short")
    if saves:
        if speed.low >= as_fast**3:
            cost = ", at little or no cost in time"
        elif speed.high < 1:
            cost = f", for {1 - speed.middle:.0%} of the speed: for when memory is short"
        else:
            cost = "; in speed within the noise"
        return Decision("no difference", saved + cost)
    if speed.high < as_fast:
        return Decision("off", "slower")
    return Decision("no difference", "within the noise" if speed.high - speed.low > margin else "as fast")


def spread_of(speeds: Sequence[float]) -> float:
    """How far apart rounds are, as a share of their median."""
    return (max(speeds) - min(speeds)) / statistics.median(speeds)


def noise_of(name: str, speeds: Sequence[float], twins: Sequence[float]) -> list[str]:
    """Why figures are to be read with care; empty on a quiet machine.

    Args:
        name: the baseline's, for the words.
        speeds: of the baseline, one a round.
        twins: see `margin_of`.
    """
    said = []
    spread = spread_of(speeds)
    if spread > NOISY_SPREAD:
        said.append(f"rounds of {name} are {spread:.0%} apart")
    margin = margin_of(twins)
    if margin > MARGIN:
        said.append(f"{name}, run twice, differs by {margin:.0%} from itself")
    return said


def contradictions(runs: Sequence[dict[str, VerdictName]]) -> list[str]:
    """Techniques of which one run says on and another off.

    Args:
        runs: each run's verdicts by technique.
    """
    found = []
    for name in dict.fromkeys(name for run in runs for name in run):
        said = [run.get(name, "not measured") for run in runs]
        if {"on", "off"} <= set(said):
            found.append(f"{name}: {', '.join(said)}")
    return found
