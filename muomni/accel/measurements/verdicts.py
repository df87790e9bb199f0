"""What was measured to lose on this machine and model, so that `auto` leaves it off and says so with both numbers.

`muomni bench` writes each verdict here, and a run's own trial of compilation its figures. They hold for one machine,
torch, driver and number of threads (`accel.measurements.hardware.signature`), one version of μOmni and one shape of the
model: with any other nothing is known, and what `auto` did before any measurement is done. What a user names is obeyed
whatever was measured.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from muomni.accel.measurements.hardware import signature
from muomni.accel.measurements.json_store import JsonStore
from muomni.config import ThinkerConfig

FILE = JsonStore("measured.json", "techniques")
# Keys that the bench's verdicts and what heeds them share: `bench.report.report.Row.key`.
ALLOCATOR, POOL, BF16, FP16, VARLEN, COMPILE = (
    "allocator",
    "allocator-pool",
    "precision-bf16",
    "precision-fp16",
    "attention-varlen",
    "compile",
)
DECODE_STEP, TALKER_STEP = "decode-step", "talker-native"
# This environment variable, when not empty, lets nothing be known: measurements are not to depend on earlier ones.
IGNORE = "MUOMNI_IGNORE_MEASURED"


@dataclass(frozen=True)
class Verdict:
    """What was found of one technique.

    Attributes:
        verdict: `on`, `off` or `no difference`.
        off, on: speeds without and with it, in `unit`.
        date: of the measurement, ISO 8601.
    """

    verdict: str
    off: float
    on: float
    unit: str
    date: str

    @property
    def lost(self) -> bool:
        """Whether it made things worse."""
        return self.verdict == "off"

    def words(self, name: str) -> str:
        """For a log: both numbers, and whence."""
        return (
            f"{name} was measured to lose here: {self.on:,.3g} {self.unit} with it, {self.off:,.3g} without "
            f"(muomni bench, {self.date.partition('T')[0]})"
        )


@dataclass(frozen=True)
class Verdicts:
    """What is known of one model on one machine, by key; `known` is empty where nothing was measured."""

    known: Mapping[str, Verdict] = field(default_factory=dict)

    def loss(self, key: str, name: str) -> str | None:
        """Why a technique is left off, in words; None where it was not measured or did not lose."""
        found = self.known.get(key)
        return found.words(name) if found is not None and found.lost else None


NOTHING = Verdicts()


def load_verdicts(device: torch.device, thinker: ThinkerConfig, weights: str = "float") -> Verdicts:
    """What is known of a model on a device.

    Args:
        device: that computes.
        thinker: the model's shape.
        weights: `float` or `int8`.
    """
    if os.environ.get(IGNORE):
        return NOTHING
    entries = FILE.read().get(_key(device, thinker, weights), {})
    if not isinstance(entries, dict):
        return NOTHING
    return Verdicts({key: found for key, value in entries.items() if (found := _parsed(value)) is not None})


def save_verdicts(
    device: torch.device, thinker: ThinkerConfig, found: Mapping[str, Verdict], weights: str = "float"
) -> None:
    """Keeps findings, over older ones of the same keys; see `load_verdicts`."""
    if not found:
        return
    before = load_verdicts(device, thinker, weights).known
    fresh = {key: asdict(one) for key, one in {**before, **found}.items()}
    FILE.add({_key(device, thinker, weights): fresh})


def load_trial(device: torch.device, thinker: ThinkerConfig, what: str) -> dict[str, float] | None:
    """Figures of an earlier trial of compilation; None where there was none.

    Args:
        device, thinker: see `load_verdicts`.
        what: was compiled: everything else that its time depends on.
    """
    if os.environ.get(IGNORE):
        return None
    found = FILE.read().get(_key(device, thinker, f"compiling {what}"))
    if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
        return None
    return found


def save_trial(device: torch.device, thinker: ThinkerConfig, what: str, figures: Mapping[str, float]) -> None:
    """Keeps the figures of a trial of compilation; see `load_trial`."""
    FILE.add({_key(device, thinker, f"compiling {what}"): dict(figures)})


def _parsed(value: Any) -> Verdict | None:
    """None of what another version wrote."""
    try:
        return Verdict(**value)
    except TypeError:
        return None


def _key(device: torch.device, thinker: ThinkerConfig, what: str) -> str:
    shape = json.dumps(thinker.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(shape.encode()).hexdigest()[:16]
    return f"{signature(device)} | muomni {version('muomni')} | {digest} {what}"
