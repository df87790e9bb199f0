"""`compile: "auto"`: whether compiled blocks pay in this run, found out by trying.

A few forward and backward passes over rows of the run are timed, eager and compiled in turns. Compilation is
kept where the time it saves over the rest of the run, taken at the least of the turns, is more than what
compiling took. Gradients are dropped and random states put back, so a run that measures goes on exactly as one
that was told what to do.

The trial itself costs up to half a minute, which a run that declines has lost. So it is left out where the run
is too short for compilation to earn twice its usual cost even if it gained as much as it does at best.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from muomni.accel.compile import blocks as compilation
from muomni.accel.compile.blocks import CompileChoice
from muomni.accel.device import random_states, restore_random
from muomni.accel.memory.out_of_memory import find_shortage
from muomni.errors import first_line

# Seconds that compiling blocks usually takes, and the share of a pass that it saves at best, as seen so far.
_USUAL_COST_S = {"cpu": 20.0, "cuda": 30.0}
_BEST_SHARE = {"cpu": 0.15, "cuda": 0.5}
_FEWEST_PASSES = 20
_TURNS = 3
_COMPILING_PASSES = 2  # documents of other lengths may compile once more
# Validation compiles the blocks once more, without gradients: that comes on top of what is measured.
_COST_FACTOR = 1.5

# What has to be known of an earlier trial.
_FIGURES = {"eager_s", "compiled_s", "least_saved_s", "cost_s"}

Pass = Callable[[int], None]


def measure(
    model: nn.Module,
    one_pass: Pass,
    passes: int,
    device: torch.device,
    earlier: Mapping[str, float] | None = None,
) -> CompileChoice:
    """Finds out whether compiling the blocks of `model` saves time; leaves the model compiled if so.

    Args:
        model: in training mode, as the run will use it; eager. Its parameters have no gradients yet.
        one_pass: takes the forward and backward pass of a micro-batch of the run, the one with this number.
        passes: micro-batches that the run will take.
        device: of the model.
        earlier: figures of a trial of the same thing on this machine: nothing is tried again.

    Returns:
        `blocks` or `off`, with a reason that says both numbers.
    """
    if passes < _FEWEST_PASSES:
        return CompileChoice("off", f"not measured: {passes} micro-batches are too few for compiling to pay")
    if earlier is not None and earlier.keys() >= _FIGURES:
        choice = _decide(earlier, passes, "an earlier trial here: ")
        compilation.apply(model, choice)
        return choice
    random = random_states(device)
    try:
        choice = _measure(model, _Timer(model, one_pass, device), passes, device)
    except (RuntimeError, MemoryError) as error:
        if find_shortage(error, "forward") is None:
            raise
        choice = CompileChoice("off", "not measured: memory ran out while it was tried")
    finally:
        model.zero_grad(set_to_none=True)
        restore_random(random, device)
    if choice.mode == "off":
        compilation.undo(model)
        gc.collect()
    return choice


class _Timer:
    """Times passes; each one leaves no gradients."""

    def __init__(self, model: nn.Module, one_pass: Pass, device: torch.device) -> None:
        self.model = model
        self.one_pass = one_pass
        self.device = device

    def __call__(self, number: int) -> float:
        """Seconds of one pass."""
        began = time.perf_counter()
        self.one_pass(number)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        self.model.zero_grad(set_to_none=True)
        return seconds


def _measure(model: nn.Module, seconds_of: _Timer, passes: int, device: torch.device) -> CompileChoice:
    needed = 2 * _USUAL_COST_S[device.type] / _BEST_SHARE[device.type]
    # The first pass is slower than the others: where even at its pace the run is too short, one is enough.
    if too_short := _too_short(seconds_of(0), passes, needed) or _too_short(seconds_of(1), passes, needed):
        return too_short
    try:
        compilation.apply(model, CompileChoice("blocks", "on trial"))
        compiling = [seconds_of(number) for number in range(_COMPILING_PASSES)]
    except RuntimeError as error:
        if find_shortage(error, "forward") is not None:
            raise
        return CompileChoice("off", f"compiling failed: {first_line(error)}")
    eager, compiled = [], []
    for number in range(_COMPILING_PASSES, _COMPILING_PASSES + _TURNS):
        with torch.compiler.set_stance("force_eager"):
            eager.append(seconds_of(number))
        compiled.append(seconds_of(number))
    return judge(eager, compiled, sum(compiling), passes)


def _too_short(pass_s: float, passes: int, needed_s: float) -> CompileChoice | None:
    if pass_s * passes >= needed_s:
        return None
    words = (
        f"not measured: some {pass_s * passes:.0f} s of training ({passes} passes of {pass_s:.3g} s) are too short for "
        f"compiling to pay, that takes {needed_s:.0f} s"
    )
    return CompileChoice("off", words, {"eager_s": pass_s, "passes": passes})


def judge(eager: list[float], compiled: list[float], compiling_s: float, passes: int) -> CompileChoice:
    """The decision from figures in seconds: of a pass in each turn, and of the passes that compiled."""
    cost = max(0.0, compiling_s - _COMPILING_PASSES * statistics.median(compiled))
    least = min(e - c for e, c in zip(eager, compiled, strict=True))
    figures = {
        "eager_s": statistics.median(eager),
        "compiled_s": statistics.median(compiled),
        "least_saved_s": least,
        "cost_s": cost,
    }
    return _decide(figures, passes)


def pays(saved_s: float, cost_s: float) -> bool:
    """Whether compiling saves enough seconds over a run for what it costs."""
    return saved_s > _COST_FACTOR * cost_s


def _decide(figures: Mapping[str, float], passes: int, whence: str = "") -> CompileChoice:
    saved, cost = figures["least_saved_s"] * passes, figures["cost_s"]
    words = (
        f"{whence}a pass takes {figures['eager_s']:.3g} s eager and {figures['compiled_s']:.3g} s compiled; over "
        f"{passes} passes that saves {'at least ' if saved > 0 else ''}{saved:.0f} s, and compiling took {cost:.0f} s"
    )
    return CompileChoice("blocks" if pays(saved, cost) else "off", words, {**figures, "passes": passes})


def remembered(mode: compilation.Mode, device: torch.device) -> CompileChoice:
    """What a run decided before it was interrupted, so that it goes on the same; eager where the compiler is gone."""
    missing = compilation.what_is_missing(device) if mode != "off" else None
    if missing:
        return CompileChoice(
            "off", f"this run was compiled so far, and now {missing}: it goes on, but no longer bit by bit"
        )
    return CompileChoice(mode, "as this run decided when it began")
