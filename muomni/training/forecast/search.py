"""Which step configurations of a recipe fit into memory, and which of those is fastest.

Varied are the micro-batch, with the number of micro-batches that keeps the effective batch; gradient checkpointing;
and compiled blocks. Memory is forecast (`training.forecast.memory`).

Time is modelled: the step's floating-point operations at a given rate, recomputation, and the weights and gradients
that each micro-batch reads and writes. It serves to rank configurations; the best few can be timed
(`training.tune.trials.take_turns`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from muomni.accel.measurements.statistics import MARGIN
from muomni.accel.memory.monitor import MIB
from muomni.accel.step_config import MODES, StepConfig
from muomni.errors import UserError
from muomni.model.flops import thinker_flops
from muomni.training.forecast.memory import Forecast, Setup, forecast

# Factors by which recomputation lengthens a step: measured at `small`, 1 x 2,048 tokens (docs/LOG.md).
_RECOMPUTED: dict[str, float] = {"off": 1.0, "selective": 1.06, "full": 1.27}
# Of the time that compiled blocks take: measured at 100 M on a CPU; for a GPU it is a guess.
_COMPILED_SHARE = {"cpu": 0.93, "cuda": 0.7}
# A micro-batch reads the weights three times and the gradients once, and writes these, in fp32; at this bandwidth.
_TRAFFIC = 5 * 4
_BANDWIDTH = {"cpu": 15e9, "cuda": 1e12}
# Seconds of a call of torch's operations of one block, forward and backward.
_CALLS = 120 * 8e-6
_COMPILE: tuple[Literal["off", "blocks"], ...] = ("off", "blocks")
_PER_MODE = 12
_TIMES = 5
ASSUMED_RATE = 100e12  # of a GPU that is not here


# Of the configurations that are timed: eager and compiled ones, and the most seconds that may take.
_EAGER, _COMPILED, _MOST_SECONDS = 3, 1, 120.0
# Setting one up takes about so many seconds; with its warm-up and rounds it takes so many steps of at most so many
# micro-batches.
_SETUP_S, _TIMED_STEPS, _TIMED_MICRO_BATCHES = 5.0, 8, 4


@dataclass(frozen=True)
class Option:
    """A step configuration of a recipe.

    Attributes:
        step: how a step is computed.
        forecast: of its memory.
        seconds: of a step, modelled.
    """

    step: StepConfig
    forecast: Forecast
    seconds: float

    def fits(self, memory: int) -> bool:
        """Whether it takes at most so many bytes."""
        return self.forecast.peak <= memory

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.step.fragment(), "seconds_modelled": self.seconds, "memory": self.forecast.as_dict()}


def micro_batches(rows: int) -> list[int]:
    """The sizes that cut a step of so many rows evenly, the largest first; thinned out where there are many."""
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    while len(sizes) > _PER_MODE:
        sizes = [*sizes[:-1:2], sizes[-1]]
    return sizes


def options(
    setup: Setup, baselines: Sequence[int], rate: float, on_update: Callable[[str], None] = lambda _: None
) -> Iterator[Option]:
    """Every step configuration, by checkpointing and then micro-batch, the largest first.

    Args:
        setup: of the recipe.
        baselines: bytes of the process, and of one with a compiler in it; without the second nothing is compiled.
        rate: floating-point operations a second.
        on_update: called with what is being forecast.

    Raises:
        ForecastError: see `forecast`.
    """
    known: dict[tuple[str, int], Forecast] = {}
    for mode in MODES:
        for size in micro_batches(setup.step.rows):
            for compiled, baseline in zip(_COMPILE, baselines, strict=False):
                step = setup.step.with_micro_batch(size).replace(checkpointing=mode, compile=compiled)
                variant = replace(setup, step=step)
                key = variant.checkpointing, size
                if key not in known:
                    on_update(f"forecasting micro-batches of {size}, checkpointing {mode}")
                    known[key] = forecast(variant)
                yield Option(step, known[key].with_baseline(baseline), step_seconds(variant, rate))


def fastest(options: Iterable[Option], seconds: Mapping[StepConfig, float]) -> Option | None:
    """The fastest by measured seconds of a step; of those as fast within the noise, the one with least memory."""
    measured = [(option, seconds[option.step]) for option in options if option.step in seconds]
    best = min((time for _, time in measured), default=0.0)
    as_fast = [option for option, time in measured if time <= best * (1 + MARGIN)]
    return min(as_fast, key=lambda option: option.forecast.peak, default=None)


def fastest_modelled(options: Iterable[Option], memory: int) -> Option | None:
    """The fastest that fits, by modelled time; of equals the one with less memory."""
    fitting = (option for option in options if option.fits(memory))
    return min(fitting, key=lambda o: (round(o.seconds, 9), o.forecast.peak), default=None)


def candidates(fitting: Sequence[Option]) -> list[Option]:
    """Those that are worth timing, the fastest by the model first.

    Of a micro-batch only the lightest checkpointing: others are slower.
    """
    lightest: dict[tuple[int, str], int] = {}
    for option in fitting:
        key, mode = (option.step.micro_batch, option.step.compile), MODES.index(option.step.checkpointing)
        lightest[key] = min(lightest.get(key, mode), mode)
    ranked = sorted(
        (o for o in fitting if MODES.index(o.step.checkpointing) == lightest[o.step.micro_batch, o.step.compile]),
        key=lambda option: (option.seconds, option.forecast.peak),
    )
    eager = [option for option in ranked if option.step.compile == "off"][:_EAGER]
    return eager + [option for option in ranked if option.step.compile != "off"][:_COMPILED]


def why_not_timed(setup: Setup, chosen: Sequence[Option]) -> str | None:
    """Why candidates are not timed; None where they are."""
    if not chosen:
        return "nothing fits"
    if not setup.text or setup.config.vision or setup.config.audio or setup.config.talker:
        return 'only text is measured here; "tune": true measures a recipe with its own data'
    parts = [min(o.step.accumulation, _TIMED_MICRO_BATCHES) / o.step.accumulation for o in chosen]
    takes = sum(_SETUP_S + _TIMED_STEPS * o.seconds * part for o, part in zip(chosen, parts, strict=True))
    if takes > _MOST_SECONDS:
        return f'it would take some {takes:.0f} s; "tune": true does it before a run'
    return None


def step_seconds(setup: Setup, rate: float) -> float:
    """Of one optimizer step, modelled; see the module."""
    thinker = setup.config.thinker
    step = setup.step
    tokens = step.micro_batch * setup.seq_len
    each = thinker_flops(thinker, [setup.seq_len] * step.micro_batch, logits=tokens).training / rate
    each *= _RECOMPUTED[step.checkpointing] * (_COMPILED_SHARE[setup.device] if step.compile != "off" else 1.0)
    traffic = thinker.num_parameters() * _TRAFFIC / _BANDWIDTH[setup.device]
    return step.accumulation * (each + traffic + _CALLS * thinker.num_hidden_layers)


def measure_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of matrix products as large as a layer's, at best; a fraction of a second."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_TIMES):
        began = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def parse_memory(text: str) -> int:
    """Bytes of `12GB`, `12 GiB`, `800MB` or a plain number of bytes.

    Raises:
        UserError: it is none of these, or nothing.
    """
    number, unit = text.strip(), 1
    for name, factor in _UNITS.items():
        if number.lower().endswith(name):
            number, unit = number[: -len(name)], factor
            break
    try:
        size = float(number) * unit
    except ValueError:
        size = 0.0
    if not 0 < size < 2**63:
        raise UserError(f"--memory {text}: name an amount, for example 12GB, 16GiB or 800MB")
    return int(size)


# The longest first: "12gib" ends with "b" too.
_UNITS = {
    "gib": 2**30, "mib": 2**20, "kib": 2**10, "tib": 2**40,
    "gb": 10**9, "mb": 10**6, "kb": 10**3, "tb": 10**12,
    "g": 10**9, "m": 10**6, "k": 10**3, "t": 10**12, "b": 1,
}  # fmt: skip


def words(size: int) -> str:
    """Bytes for a person."""
    return f"{size / MIB:,.0f} MiB" if size < 10 * 1024 * MIB else f"{size / 1024 / MIB:,.1f} GiB"
