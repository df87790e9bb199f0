"""How near forecasts of memory came on this machine: each run leaves its error, and `muomni plan` shows them."""

import os
from importlib.metadata import version
from typing import Any

import torch

from muomni.accel.measurements.hardware import signature
from muomni.accel.measurements.json_store import JsonStore
from muomni.accel.measurements.verdicts import IGNORE

ERRORS = JsonStore("forecasts.json", "errors of forecasts")
_MOST = 100


def remember_error(device: torch.device, forecast: dict[str, Any]) -> None:
    """Keeps the error of a run's forecast, where there is one.

    Args:
        device: that the run was on.
        forecast: what `training.forecast.memory.beside` gave.
    """
    error = forecast.get("error")
    if error is not None and not os.environ.get(IGNORE):
        ERRORS.add({_key(device): [*past_errors(device), error][-_MOST:]})


def past_errors(device: torch.device) -> list[float]:
    """Forecast / measured - 1 of the latest runs on this machine, the oldest first."""
    found = ERRORS.read().get(_key(device))
    return [error for error in found if isinstance(error, float | int)] if isinstance(found, list) else []


def in_words(errors: list[float]) -> str:
    """For a person."""
    if not errors:
        return "no run on this machine has been compared with its forecast yet"
    runs = "the last run here" if len(errors) == 1 else f"the last {len(errors)} runs here"
    low, high = min(errors), max(errors)
    span = f"{low:+.1%}" if len(errors) == 1 else f"{low:+.1%} to {high:+.1%}"
    return f"forecasts of {runs}: {span} off what was measured"


def _key(device: torch.device) -> str:
    return f"{signature(device)} | muomni {version('muomni')}"
