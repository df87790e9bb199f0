"""The techniques of training, each on against off with everything else equal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from muomni.bench.cases import TrainCase
from muomni.bench.compare import Measured, compare

EquivalenceClass = Literal["exact", "rounding", "another optimizer"]


@dataclass(frozen=True)
class Technique:
    """One technique.

    Attributes:
        name: what it is called.
        off, on: fields of `TrainCase` without and with it.
        claim: the class its gradients are held to by the tests; the bench shows the measured value.
    """

    name: str
    off: dict[str, Any]
    on: dict[str, Any]
    claim: EquivalenceClass


TECHNIQUES = (
    Technique("mixed precision (bf16)", {"precision": "fp32"}, {"precision": "bf16"}, "rounding"),
    Technique("gradient accumulation (4 micro-batches)", {}, {"accumulation": 4}, "rounding"),
    Technique("gradient checkpointing, full", {}, {"checkpointing": "full"}, "exact"),
    Technique("gradient checkpointing, selective", {}, {"checkpointing": "selective"}, "exact"),
    Technique("linear cross-entropy in chunks", {"loss": "logits"}, {"loss": "chunked"}, "rounding"),
    Technique("Muon instead of AdamW", {}, {"optimizer": "muon"}, "another optimizer"),
    Technique("torch.compile of the blocks", {}, {"compile": "blocks"}, "rounding"),
)


@dataclass(frozen=True)
class OnOff:
    """A technique's figures; those of `on` are relative to `off`."""

    technique: Technique
    off: Measured
    on: Measured

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "technique": self.technique.name,
            "class": self.technique.claim,
            "off": self.off.as_dict(),
            "on": self.on.as_dict(),
        }


def measure_techniques(common: dict[str, Any], rounds: int, steps: int, say: Callable[[str], None]) -> Iterator[OnOff]:
    """Measures each technique, two processes at a time.

    Args:
        common: fields of `TrainCase` that all cases share; precision is bf16 unless a technique says otherwise.
        rounds, steps, say: see `compare`.
    """
    for technique in TECHNIQUES:
        say(technique.name)
        cases = [
            TrainCase.model_validate({"precision": "bf16", **common, **fields, "name": name})
            for name, fields in (("off", technique.off), ("on", technique.on))
        ]
        off, on = compare(cases, rounds, steps)
        yield OnOff(technique, off, on)
