"""Which settings of a recipe fit a memory, and which of those takes the least time.

What is varied changes nothing that is learnt beyond rounding: the micro-batch, with the number of micro-batches that
keeps the effective batch; gradient checkpointing; compiled blocks. Memory is forecast (`train.forecast.memory`).

Time is modelled, not measured: the step's floating-point operations at a rate that is given, what is computed again,
and what each micro-batch reads and writes of weights and gradients. It serves to put settings in order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from muomni.accel.memory.monitor import MIB
from muomni.errors import UserError
from muomni.model.flops import thinker_flops
from muomni.train.forecast.memory import Checkpointing, Forecast, Setup, forecast

MODES: tuple[Checkpointing, ...] = ("off", "selective", "full")
# What recomputation adds to a step: measured at `small`, 1 x 2,048 tokens (docs/LOG.md, gradient checkpointing).
_RECOMPUTED: dict[str, float] = {"off": 1.0, "selective": 1.06, "full": 1.27}
# Of the time that compiled blocks take: measured at 100 M on a CPU; for a GPU it is a guess.
_COMPILED = {"cpu": 0.93, "cuda": 0.7}
# A micro-batch reads the weights three times and the gradients once, and writes these, in fp32; at this bandwidth.
_TRAFFIC = 5 * 4
_BANDWIDTH = {"cpu": 15e9, "cuda": 1e12}
# Seconds of a call of torch's operations of one block, forward and backward.
_CALLS = 120 * 8e-6
_PER_MODE = 12
_TIMES = 5
ASSUMED_RATE = 100e12  # of a GPU that is not here


@dataclass(frozen=True)
class Option:
    """A way to take the recipe's steps.

    Attributes:
        setup: with its micro-batch, number of them, checkpointing and compilation.
        forecast: its memory.
        seconds: of a step, modelled.
    """

    setup: Setup
    forecast: Forecast
    seconds: float

    def fits(self, memory: int) -> bool:
        """Whether it takes at most so many bytes."""
        return self.forecast.peak <= memory

    @property
    def fragment(self) -> dict[str, Any]:
        """What a recipe says to have it so."""
        s = self.setup
        return {
            "batch_size": s.micro_batch,
            "gradient_accumulation_steps": s.accumulation,
            "gradient_checkpointing": s.checkpointing,
            "compile": "blocks" if s.compiled else "off",
        }

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.fragment, "seconds_modelled": self.seconds, "memory": self.forecast.as_dict()}


def micro_batches(rows: int) -> list[int]:
    """The sizes that cut a step of so many rows evenly, the largest first; thinned out where there are many."""
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    while len(sizes) > _PER_MODE:
        sizes = [*sizes[:-1:2], sizes[-1]]
    return sizes


def options(
    setup: Setup, baselines: Sequence[int], rate: float, said: Callable[[str], None] = lambda _: None
) -> Iterator[Option]:
    """Every way, by checkpointing and then micro-batch, the largest first.

    Args:
        setup: the recipe's own way.
        baselines: bytes of the process, and of one with a compiler in it; without the second nothing is compiled.
        rate: floating-point operations a second.
        said: is told what is being forecast.

    Raises:
        ForecastError: see `forecast`.
    """
    rows = setup.micro_batch * setup.accumulation
    known: dict[tuple[str, int], Forecast] = {}
    for mode in MODES:
        for size in micro_batches(rows):
            for compiles, baseline in enumerate(baselines):
                way = replace(
                    setup, micro_batch=size, accumulation=rows // size, checkpointing=mode, compiled=bool(compiles)
                )
                key = way.computed_as, size
                if key not in known:
                    said(f"forecasting checkpointing {mode}, micro-batches of {size}")
                    known[key] = forecast(way)
                yield Option(way, known[key].with_baseline(baseline), step_seconds(way, rate))


def fastest(found: list[Option], memory: int) -> Option | None:
    """The one that takes the least time of those that fit; of equals the one with less memory."""
    fitting = [option for option in found if option.fits(memory)]
    return min(fitting, key=lambda o: (round(o.seconds, 9), o.forecast.peak), default=None)


def step_seconds(setup: Setup, rate: float) -> float:
    """Of one optimizer step, modelled; see the module."""
    thinker = setup.config.thinker
    tokens = setup.micro_batch * setup.seq_len
    each = thinker_flops(thinker, [setup.seq_len] * setup.micro_batch, logits=tokens).training / rate
    each *= _RECOMPUTED[setup.checkpointing] * (_COMPILED[setup.device] if setup.compiled else 1.0)
    traffic = thinker.num_parameters() * _TRAFFIC / _BANDWIDTH[setup.device]
    return setup.accumulation * (each + traffic + _CALLS * thinker.num_hidden_layers)


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
    for name, size in _UNITS.items():
        if number.lower().endswith(name):
            number, unit = number[: -len(name)], size
            break
    try:
        found = float(number) * unit
    except ValueError:
        found = 0.0
    if not 0 < found < 2**63:
        raise UserError(f"--memory {text}: say how much, for example 12GB, 16GiB or 800MB")
    return int(found)


# The longest first: "12gib" ends with "b" too.
_UNITS = {
    "gib": 2**30, "mib": 2**20, "kib": 2**10, "tib": 2**40,
    "gb": 10**9, "mb": 10**6, "kb": 10**3, "tb": 10**12,
    "g": 10**9, "m": 10**6, "k": 10**3, "t": 10**12, "b": 1,
}  # fmt: skip


def words(size: int) -> str:
    """Bytes for a person."""
    return f"{size / MIB:,.0f} MiB" if size < 10 * 1024 * MIB else f"{size / 1024 / MIB:,.1f} GiB"
