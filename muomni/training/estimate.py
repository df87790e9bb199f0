"""What a recipe will take, before it is trained: memory, step configurations that fit, and the fastest of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from muomni.accel.compile.blocks import what_is_missing
from muomni.accel.device import free_memory
from muomni.accel.step_config import StepConfig
from muomni.config import OmniConfig, Recipe
from muomni.errors import UserError
from muomni.training.forecast.accuracy import past_errors
from muomni.training.forecast.memory import Setup, forecast, inference_memory, setup_of, uncertainty
from muomni.training.forecast.search import (
    ASSUMED_RATE,
    Option,
    candidates,
    fastest,
    fastest_modelled,
    measure_rate,
    options,
    step_seconds,
    why_not_timed,
)
from muomni.training.process_overhead import process_baseline
from muomni.training.tune.trials import take_turns


@dataclass(frozen=True)
class Estimate:
    """What is known of a recipe before it is trained.

    Attributes:
        setup: of the recipe as it is.
        memory, source: bytes available, and how that is known.
        rate, rate_measured: floating-point operations a second of matrix products, and whether that was measured.
        options: every step configuration; `best` is the one to take, None where none fits.
        seconds: measured ones of a step, one a round; `not_measured` says why there are none.
        values: all of it for `--json`.
    """

    setup: Setup
    memory: int
    source: str
    rate: float
    rate_measured: bool
    options: list[Option]
    best: Option | None
    seconds: dict[StepConfig, list[float]]
    not_measured: str | None
    values: dict[str, Any]


def estimate(
    recipe: Recipe, device: str | None, memory: int | None, measure: bool, on_update: Callable[[str], None]
) -> Estimate:
    """Forecasts a recipe's memory and ranks its step configurations.

    Args:
        recipe: of a model; its data are not read.
        device: `cpu` or `cuda`, which need not be here; None takes the recipe's.
        memory: bytes available; None takes what is free now.
        measure: times the best few where the device is here.
        on_update: called with what is going on.

    Raises:
        UserError: `memory` is None and the device is not here.
        ForecastError: see `forecast`.
    """
    setup = setup_of(recipe, device=device)
    where = torch.device(setup.device)
    is_here = setup.device != "cuda" or torch.cuda.is_available()
    if memory is None and not is_here:
        raise UserError("no GPU is here whose memory could be read: name it with --memory")
    room, source = (memory, "as given") if memory is not None else (free_memory(where), "free now")
    # Of a machine that is not here, a compiler is assumed.
    compiles = recipe.compile != "off" and (not is_here or what_is_missing(where) is None)
    name = setup.step.precision, setup.optimizer.name
    on_cpu = setup.device == "cpu"
    baselines = [process_baseline(*name, c) if on_cpu else 0 for c in ((False, True) if compiles else (False,))]
    rate = measure_rate(where, setup.step.precision) if is_here else ASSUMED_RATE
    training = forecast(setup).with_baseline(baselines[-1 if setup.step.compile != "off" else 0])
    listed = list(options(setup, baselines, rate, on_update))
    fitting = [option for option in listed if option.fits(room)]
    chosen = candidates(fitting)
    not_measured = why_not_timed(setup, chosen) if is_here else "the device is not here"
    seconds: dict[StepConfig, list[float]] = {}
    if not measure:
        not_measured = "--no-measure"
    elif not_measured is None:
        seconds = take_turns(recipe.replace(device=setup.device), [option.step for option in chosen], on_update)
    medians = {step: sorted(times)[len(times) // 2] for step, times in seconds.items()}
    best = fastest(fitting, medians) if medians else fastest_modelled(listed, room)
    values = {
        "device": setup.device,
        "precision": setup.step.precision,
        "memory_mib": round(room / 2**20, 1),
        "rate_flops": rate,
        "rate_measured": is_here,
        "training": training.as_dict(),
        "step_seconds_modelled": step_seconds(setup, rate),
        "uncertainty": uncertainty(setup),
        "past_errors": past_errors(where) if is_here else [],
        "inference": inference_memory(setup.config),
        "not_modelled": _not_modelled(setup.config, recipe.compile != "off", recipe.parallel == "fsdp"),
        "not_measured": not_measured,
        "options": [
            option.as_dict()
            | {"fits": option.fits(room)}
            | ({"seconds_measured": medians[option.step]} if option.step in medians else {})
            for option in listed
        ],
        "fastest": None if best is None else best.step.fragment(),
    }
    return Estimate(setup, room, source, rate, is_here, listed, best, seconds, not_measured, values)


def _not_modelled(config: OmniConfig, compiles: bool, shares: bool) -> list[str]:
    parts = ["memory for reading the data and training the tokenizer"]
    for name, what in (("vision", "images"), ("audio", "audio"), ("talker", "speech")):
        if getattr(config, name) is not None:
            parts.append(f"activations of {what}: only its weights, gradients and optimizer state are included")
    if compiles:
        parts.append("compiled blocks: assumed to keep what selective checkpointing keeps")
    if shares:
        parts.append("fsdp: the numbers are those of one process that holds everything")
    return parts
