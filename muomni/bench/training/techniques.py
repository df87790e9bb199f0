"""The techniques of training, each on against off with everything else equal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from muomni.accel.device import pick_device
from muomni.accel.mixed_precision import pick_precision
from muomni.accel.technique import TECHNIQUES, Technique, measured_by
from muomni.bench.training.case import TrainCase, why_not
from muomni.bench.training.compare import Measured, compare


@dataclass(frozen=True)
class OnOff:
    """A technique's figures, those of `on` relative to `off`; or why there are none."""

    technique: Technique
    off: Measured | None = None
    on: Measured | None = None
    not_measured: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "technique": self.technique.title,
            "class": self.technique.equivalence,
            "off": None if self.off is None else self.off.as_dict(),
            "on": None if self.on is None else self.on.as_dict(),
            "not_measured": self.not_measured,
        }


def measure_techniques(
    common: Mapping[str, Any],
    rounds: int,
    steps: int,
    say: Callable[[str], None],
    techniques: Sequence[Technique] = TECHNIQUES,
) -> Iterator[OnOff]:
    """Measures each technique, or says why it cannot be measured here; a family at a time.

    Args:
        common: fields of `TrainCase` that all cases share; precision is the best of this machine unless a technique
            says otherwise.
        rounds: see `compare`. All cases of a family, at most four, are in memory at once.
        steps: see `compare`.
        say: see `compare`.
        techniques: the list of techniques.
    """
    precision = pick_precision("auto", pick_device(common.get("device", "auto"))).name

    def case(name: str, fields: Mapping[str, Any]) -> TrainCase:
        return TrainCase.model_validate({"precision": precision, **common, **fields, "name": name})

    listed = measured_by("training step", techniques, mode="table")
    for family, members in groupby(listed, key=lambda technique: technique.family or technique.key):
        family_members = list(members)
        off = case(f"{family}: without", family_members[0].off_settings)
        cases = {technique.title: case(technique.title, technique.on_settings) for technique in family_members}
        reasons = {name: reason for name, on in cases.items() if (reason := why_not(off) or why_not(on))}
        to_measure = [on for name, on in cases.items() if name not in reasons]
        say(family if to_measure else f"{family}: not measured")
        results = {m.name: m for m in compare([off, *to_measure], rounds, steps)} if to_measure else {}
        for technique in family_members:
            if technique.title in reasons:
                yield OnOff(technique, not_measured=reasons[technique.title])
            else:
                yield OnOff(technique, results[off.name], results[technique.title])
