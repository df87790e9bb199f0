"""What pictures and sounds cost in training, beside what the encoders' floating-point operations explain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muomni.accel.device import pick_device
from muomni.accel.mixed_precision import pick_precision
from muomni.bench.training.case import TrainCase, check
from muomni.bench.training.compare import Measured, compare
from muomni.config import AudioConfig, VisionConfig

_TEXT = "text"
_CONTRASTIVE = 256


@dataclass(frozen=True)
class MediaCost:
    """One kind of rows against text in the same places.

    Attributes:
        measured: its figures; ratios are relative to text.
        explained: operations per token over those of text.
    """

    measured: Measured
    explained: float

    @property
    def slowdown(self) -> tuple[float, float, float]:
        """Time per token over that of text: median of the rounds, least, most."""
        m = self.measured
        return 1 / m.ratio, 1 / m.ratio_high, 1 / m.ratio_low

    @property
    def excess(self) -> tuple[float, float, float]:
        """By which factor, less one, it is slower than the operations explain: median, least, most."""
        median, least, most = (slowdown / self.explained - 1 for slowdown in self.slowdown)
        return median, least, most

    @property
    def verdict(self) -> str:
        """An excess is claimed only where every round has one."""
        median, least, most = self.excess
        if least > 0:
            return f"{median:.0%} slower than FLOPs explain ({least:.0%} to {most:.0%})"
        return "no slower than FLOPs explain"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rounded = {
            "slowdown": [round(value, 4) for value in self.slowdown],
            "explained": round(self.explained, 4),
            "excess": [round(value, 4) for value in self.excess],
        }
        return self.measured.as_dict() | rounded | {"verdict": self.verdict}


def media_cases(common: dict[str, Any], vision: VisionConfig, audio: AudioConfig) -> list[TrainCase]:
    """Text, pictures, clips, both, and both with the encoders' own losses."""
    precision = pick_precision("auto", pick_device(common.get("device", "auto"))).name
    shared = {"precision": precision, "vision": vision, "audio": audio, **common}
    heads = {
        "vision": vision.replace(projection_dim=_CONTRASTIVE),
        "audio": audio.replace(ctc=True),
    }
    named: dict[str, dict[str, Any]] = {
        _TEXT: {"media": "text"},
        "pictures": {"media": "pictures"},
        "clips": {"media": "clips"},
        "pictures and clips": {"media": "mixed"},
        "the same, with CTC and contrastive losses": {"media": "mixed", **heads},
    }
    return [TrainCase.model_validate({**shared, **fields, "name": name}) for name, fields in named.items()]


def measure_media(
    common: dict[str, Any],
    vision: VisionConfig,
    audio: AudioConfig,
    rounds: int,
    steps: int,
    say: Callable[[str], None],
) -> list[MediaCost]:
    """Steps of as many tokens of the Thinker each; the first row is text.

    Args:
        common: fields of `TrainCase` that all cases share.
        vision: the encoder of pictures.
        audio: the encoder of sounds.
        rounds: see `compare`.
        steps: see `compare`.
        say: see `compare`.

    Raises:
        ConfigError: this cannot be measured here.
    """
    cases = media_cases(common, vision, audio)
    for case in cases:
        check(case)
    found = compare(cases, rounds, steps, say=say)
    return [MediaCost(each, each.flops_per_token / found[0].flops_per_token) for each in found]
