"""Which of several ways to take a recipe's step is fastest here: measured in turns, for `muomni plan`.

Rows are random tokens of the recipe's length, one document each. A step of many micro-batches is measured with a few
of them, so what the optimizer takes counts a little more than it will.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from muomni.bench.report.sections import Say
from muomni.bench.statistics import MARGIN
from muomni.bench.training.case import TrainCase
from muomni.bench.training.compare import take_turns
from muomni.errors import MuOmniError
from muomni.train.forecast.memory import Setup
from muomni.train.forecast.search import MODES, Option

# Ways that are tried: the best by the model, of them one compiled.
_EAGER, _COMPILED = 3, 1
_ROUNDS, _MOST_MICRO_BATCHES = 3, 4
# Beyond this many seconds, as modelled, nothing is measured.
MOST_SECONDS = 120.0
# Setting up a case takes about so long, its first step and warm-up as long as these steps.
_SETUP_S, _SETUP_STEPS = 5.0, 5


@dataclass(frozen=True)
class Speed:
    """Seconds of one of the recipe's steps: median over rounds, and the extremes."""

    seconds: float
    low: float
    high: float


def candidates(fitting: Sequence[Option]) -> list[Option]:
    """Those that are worth measuring, the fastest by the model first.

    Of a micro-batch only the checkpointing that computes least again: others can but be slower.
    """
    lightest: dict[tuple[int, bool], int] = {}
    for option in fitting:
        mode = MODES.index(option.setup.checkpointing)
        key = option.setup.micro_batch, option.setup.compiled
        lightest[key] = min(lightest.get(key, mode), mode)
    ranked = sorted(
        (o for o in fitting if MODES.index(o.setup.checkpointing) == lightest[o.setup.micro_batch, o.setup.compiled]),
        key=lambda option: (option.seconds, option.forecast.peak),
    )
    eager = [option for option in ranked if not option.setup.compiled][:_EAGER]
    return eager + [option for option in ranked if option.setup.compiled][:_COMPILED]


def why_not(chosen: Sequence[Option]) -> str | None:
    """Why nothing is measured; None where it is."""
    if not chosen:
        return "nothing fits"
    setup = chosen[0].setup
    if not setup.text or setup.config.vision or setup.config.audio or setup.config.talker:
        return 'only text is measured here; "tune": true measures a recipe with its own data'
    takes = sum(_SETUP_S + (_ROUNDS + _SETUP_STEPS) * option.seconds * _part(option.setup) for option in chosen)
    if takes > MOST_SECONDS:
        return f'it would take some {takes:.0f} s; "tune": true does it before a run'
    return None


def name_of(option: Option) -> str:
    """In words; no two options of a recipe have the same."""
    setup = option.setup
    compiled = ", compiled" if setup.compiled else ""
    return f"{setup.accumulation} × {setup.micro_batch} rows, checkpointing {setup.checkpointing}{compiled}"


def measure(chosen: Sequence[Option], say: Say) -> dict[str, Speed]:
    """Seconds of a step of each by `name_of`; those that cannot be taken here are left out.

    Args:
        chosen: see `candidates`.
        say: told what is going on.
    """
    setups = {name_of(option): option.setup for option in chosen}
    refused: dict[str, str] = {}
    found = take_turns([_case(setup, name) for name, setup in setups.items()], _ROUNDS, 1, say, refused)
    for name, reason in refused.items():
        say(f"{name}: {reason}")
    speeds = {}
    for name, figures in found.items():
        setup = setups[name]
        tokens = setup.micro_batch * setup.accumulation * setup.seq_len
        times = [tokens / speed for speed in figures.speeds]
        speeds[name] = Speed(statistics.median(times), min(times), max(times))
    if not speeds:
        raise MuOmniError(f"no way could be measured here: {'; '.join(refused.values())}")
    return speeds


def fastest(chosen: Sequence[Option], speeds: dict[str, Speed]) -> Option:
    """The fastest; of those that are as fast within the noise, the one that takes least memory."""
    best = min(speed.seconds for speed in speeds.values())
    known = [(option, speeds[name_of(option)].seconds) for option in chosen if name_of(option) in speeds]
    as_fast = [option for option, seconds in known if seconds <= best * (1 + MARGIN)]
    return min(as_fast, key=lambda option: option.forecast.peak)


def _part(setup: Setup) -> float:
    """Of a step, what is measured."""
    return min(setup.accumulation, _MOST_MICRO_BATCHES) / setup.accumulation


def _case(setup: Setup, name: str) -> TrainCase:
    number = min(setup.accumulation, _MOST_MICRO_BATCHES)
    return TrainCase(
        name=name,
        thinker=setup.config.thinker,
        batch_size=setup.micro_batch * number,
        seq_len=setup.seq_len,
        accumulation=number,
        precision=setup.precision,
        compile="blocks" if setup.compiled else "off",
        checkpointing=setup.checkpointing,
        optimizer=setup.optimizer.name,
        device=setup.device,
    )
