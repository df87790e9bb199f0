"""How much a run of the bench does, and what a part of it hands back."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from muomni.accel.measurements.statistics import LEAST_ROUNDS, MARGIN
from muomni.bench.report.report import DecodePoint, MemoryBar, ReportRow, Scaling
from muomni.config import ThinkerConfig

Say = Callable[[str], None]
# One more than the least: the interval of three rounds is half as wide again.
_LEAST_QUICK_ROUNDS = LEAST_ROUNDS + 1


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        mode: quick or full.
        train_s, infer_s: seconds after which no more rounds are begun in a part, once there are enough to judge.
        rounds: turns that each case takes at most.
    """

    mode: Literal["quick", "full"]
    train_s: float
    infer_s: float
    rounds: int

    def enough(self, seconds: float) -> Callable[[int], bool]:
        """Whether to stop after so many rounds; the clock of `seconds` starts now."""
        end = time.monotonic() + seconds
        least = _LEAST_QUICK_ROUNDS if self.mode == "quick" else self.rounds
        return lambda turns: turns >= least and time.monotonic() > end


# The budgets of a quick run leave room in its three minutes for starting the cases.
QUICK = Effort("quick", train_s=60.0, infer_s=50.0, rounds=7)
FULL = Effort("full", train_s=math.inf, infer_s=math.inf, rounds=11)


@dataclass(frozen=True)
class Target:
    """What is measured.

    Attributes:
        name: as the user gave it.
        thinker: its shape.
        folder: of its weights; None for a preset, whose weights are drawn.
    """

    name: str
    thinker: ThinkerConfig
    folder: Path | None


@dataclass(frozen=True)
class Found:
    """What a part of the bench found; see the fields of `Report`."""

    rows: tuple[ReportRow, ...]
    noise: tuple[str, ...] = ()
    margin: float = MARGIN
    settings: tuple[tuple[str, object], ...] = ()
    memory: tuple[MemoryBar, ...] = ()
    decode: tuple[DecodePoint, ...] = ()
    scaling: Scaling = field(default_factory=Scaling)
    bandwidth: float | None = None
