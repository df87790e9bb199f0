"""Benchmark verdicts for this machine and model: `auto` declines what was measured to lose, and logs both numbers.

`muomni bench` stores its verdicts here, and a run the timings of its own compile trial. An entry holds for one machine,
torch, driver and number of threads (`accel.measurements.hardware.signature`), one version of μOmni and one shape of the
model. What a user names is obeyed whatever was measured.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from muomni.accel.measurements.hardware import signature
from muomni.accel.measurements.json_store import JsonStore
from muomni.accel.technique import TECHNIQUES, Technique
from muomni.config import ThinkerConfig

FILE = JsonStore("measured.json", "techniques")
# When this environment variable is not empty, stored verdicts are ignored: no measurement may depend on earlier ones.
IGNORE = "MUOMNI_IGNORE_MEASURED"


@dataclass(frozen=True)
class Verdict:
    """The measured verdict on one technique.

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
        """Whether the technique made things worse."""
        return self.verdict == "off"


@dataclass(frozen=True)
class Declined:
    """What an `auto` takes instead of a technique that lost, and why, for the log."""

    instead: str
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on one model and machine, by key of the technique; empty where nothing was measured."""

    known: Mapping[str, Verdict] = field(default_factory=dict)

    def declined(
        self, setting: str, value: str | None = None, techniques: Sequence[Technique] = TECHNIQUES
    ) -> Declined | None:
        """What a setting's `auto` takes instead of its usual value; None where that did not lose.

        Args:
            setting: its name, see `Setting.name`.
            value: that `auto` would take here; None: any that it may take.
            techniques: the list of techniques; the first of them that lost decides.
        """
        for technique in techniques:
            of, verdict = technique.setting, self.known.get(technique.key)
            if of is None or of.instead is None or verdict is None or not verdict.lost:
                continue
            if of.name == setting and value in (None, of.value):
                return Declined(
                    of.instead,
                    f"{technique.title} was measured to lose here: {verdict.on:,.3g} {verdict.unit} with it, "
                    f"{verdict.off:,.3g} without (muomni bench, {verdict.date.partition('T')[0]})",
                )
        return None


NOTHING = Verdicts()


def load_verdicts(device: torch.device, thinker: ThinkerConfig, weights: str = "float") -> Verdicts:
    """The stored verdicts on a model and device.

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
    return Verdicts({key: verdict for key, value in entries.items() if (verdict := _parsed(value)) is not None})


def save_verdicts(
    device: torch.device, thinker: ThinkerConfig, new: Mapping[str, Verdict], weights: str = "float"
) -> None:
    """Stores verdicts over older ones of the same keys; see `load_verdicts`."""
    if not new:
        return
    before = load_verdicts(device, thinker, weights).known
    fresh = {key: asdict(verdict) for key, verdict in {**before, **new}.items()}
    FILE.add({_key(device, thinker, weights): fresh})


def load_trial(device: torch.device, thinker: ThinkerConfig, what: str) -> dict[str, float] | None:
    """Timings of an earlier compile trial; None where there was none.

    Args:
        device: see `load_verdicts`.
        thinker: the same.
        what: was compiled: everything else that its time depends on.
    """
    if os.environ.get(IGNORE):
        return None
    timings = FILE.read().get(_key(device, thinker, f"compiling {what}"))
    if not isinstance(timings, dict) or not all(isinstance(value, int | float) for value in timings.values()):
        return None
    return timings


def save_trial(device: torch.device, thinker: ThinkerConfig, what: str, timings: Mapping[str, float]) -> None:
    """Stores the timings of a compile trial; see `load_trial`."""
    FILE.add({_key(device, thinker, f"compiling {what}"): dict(timings)})


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
