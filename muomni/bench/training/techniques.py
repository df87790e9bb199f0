"""The techniques of training, each on against off with everything else equal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from muomni.accel.device import pick_device
from muomni.accel.mixed_precision import pick_precision
from muomni.bench.training.case import TrainCase, check
from muomni.bench.training.compare import Measured, compare
from muomni.errors import ConfigError

EquivalenceClass = Literal["exact", "rounding", "approximate", "another optimizer"]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Technique:
    """One technique.

    Attributes:
        family: techniques of one family have the same `off` and are measured together, taking turns.
        name: what it is called.
        off, on: fields of `TrainCase` without and with it.
        claim: the class its results are held to by the tests; the bench shows the measured value.
    """

    family: str
    name: str
    off: Fields
    on: Fields
    claim: EquivalenceClass


_REFERENCE: Fields = {"attention": "reference"}
_PACKED: Fields = {"documents": 100}
_LOOP: Fields = {"adamw": "for-loop", "updates": True}
_FUSED: Fields = {"updates": True}

TECHNIQUES = (
    Technique("allocator", "freed memory kept", {"allocator": "system"}, {"allocator": "retain"}, "exact"),
    Technique("arena", "large tensors in a pool", {"allocator": "retain"}, {"allocator": "arena"}, "exact"),
    Technique("precision", "mixed precision, bf16", {"precision": "fp32"}, {"precision": "bf16"}, "rounding"),
    Technique("precision", "mixed precision, fp16", {"precision": "fp32"}, {"precision": "fp16"}, "rounding"),
    Technique("accumulation", "gradient accumulation, 4 micro-batches", {}, {"accumulation": 4}, "rounding"),
    Technique("checkpointing", "gradient checkpointing, full", {}, {"checkpointing": "full"}, "exact"),
    Technique("checkpointing", "gradient checkpointing, selective", {}, {"checkpointing": "selective"}, "exact"),
    Technique("attention", "attention: the chosen one for the reference", _REFERENCE, {}, "rounding"),
    Technique("packed", "the same, documents of 100 tokens", _REFERENCE | _PACKED, _PACKED, "rounding"),
    *(
        Technique("backends", f"attention: {name} for sdpa, documents", {"attention": "sdpa"} | _PACKED, on, "rounding")
        for name in ("varlen", "flash_attn", "flex")
        for on in ({"attention": name} | _PACKED,)
    ),
    Technique("loss", "linear cross-entropy in chunks", {"loss": "logits"}, {"loss": "chunked"}, "rounding"),
    Technique("loss", "F.linear_cross_entropy", {"loss": "logits"}, {"loss": "torch"}, "rounding"),
    Technique("loss", "F.linear_cross_entropy, its chunks", {"loss": "logits"}, {"loss": "torch chunked"}, "rounding"),
    Technique("adamw", "foreach AdamW for a loop", _LOOP, {"adamw": "foreach", "updates": True}, "rounding"),
    Technique("adamw", "fused AdamW for a loop", _LOOP, _FUSED, "rounding"),
    Technique("optimizer", "8-bit AdamW for AdamW", _FUSED, {"optimizer": "adamw8bit"} | _FUSED, "approximate"),
    Technique("optimizer", "Muon for AdamW", _FUSED, {"optimizer": "muon"} | _FUSED, "another optimizer"),
    Technique("compile", "torch.compile of the blocks", {}, {"compile": "blocks"}, "rounding"),
    Technique("compile", "torch.compile of the whole model", {}, {"compile": "full"}, "rounding"),
)


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
            "technique": self.technique.name,
            "class": self.technique.claim,
            "off": None if self.off is None else self.off.as_dict(),
            "on": None if self.on is None else self.on.as_dict(),
            "not_measured": self.not_measured,
        }


def measure_techniques(common: Fields, rounds: int, steps: int, say: Callable[[str], None]) -> Iterator[OnOff]:
    """Measures each technique, or says why it cannot be measured here; a family at a time.

    Args:
        common: fields of `TrainCase` that all cases share; precision is the best of this machine unless a technique
            says otherwise.
        rounds, steps, say: see `compare`. All cases of a family, at most four, are in memory at once.
    """
    precision = pick_precision("auto", pick_device(common.get("device", "auto"))).name

    def case(name: str, fields: Fields) -> TrainCase:
        return TrainCase.model_validate({"precision": precision, **common, **fields, "name": name})

    for family, members in groupby(TECHNIQUES, key=lambda technique: technique.family):
        techniques = list(members)
        off = case(f"{family}: without", techniques[0].off)
        cases = {technique.name: case(technique.name, technique.on) for technique in techniques}
        reasons = {name: reason for name, on in cases.items() if (reason := _why_not(off) or _why_not(on))}
        to_measure = [on for name, on in cases.items() if name not in reasons]
        say(family if to_measure else f"{family}: not measured")
        figures = {m.name: m for m in compare([off, *to_measure], rounds, steps)} if to_measure else {}
        for technique in techniques:
            if technique.name in reasons:
                yield OnOff(technique, not_measured=reasons[technique.name])
            else:
                yield OnOff(technique, figures[off.name], figures[technique.name])


def _why_not(case: TrainCase) -> str | None:
    try:
        check(case)
    except ConfigError as error:
        return str(error)
    return None
