"""Errors of forecasts are kept for one machine and said in words."""

from pathlib import Path

import pytest
import torch

from muomni.accel.measurements.verdicts import IGNORE
from muomni.training.forecast.accuracy import ERRORS, in_words, past_errors, remember_error

CPU = torch.device("cpu")


def test_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path))
    remember_error(CPU, {"error": 0.1})  # a measurement's own run, as this session of tests is
    assert not ERRORS.path.exists()
    monkeypatch.delenv(IGNORE)
    assert past_errors(CPU) == [] and "no run" in in_words([])
    remember_error(CPU, {"not_forecast": "a reason"})
    remember_error(CPU, {"error": None})
    assert not ERRORS.path.exists()
    for number in range(105):
        remember_error(CPU, {"error": number / 1000})
    assert past_errors(CPU) == [number / 1000 for number in range(5, 105)]
    assert in_words(past_errors(CPU)) == "forecasts of the last 100 runs here: +0.5% to +10.4% off what was measured"
    assert in_words([-0.021]) == "forecasts of the last run here: -2.1% off what was measured"
    monkeypatch.setattr(torch, "__version__", "99")
    assert past_errors(CPU) == []
