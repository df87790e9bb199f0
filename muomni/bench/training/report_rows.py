"""The techniques of training as rows of a report: all cases take turns with one baseline, which runs twice."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from muomni.accel.device import free_memory, pick_device
from muomni.accel.measurements.statistics import margin_of, noise_of, ratios_of, spread_of
from muomni.accel.mixed_precision import pick_precision
from muomni.accel.technique import TECHNIQUES, Technique, measured_by
from muomni.bench.report.report import Equivalence, Memory, MemoryBar, ReportRow, measured_row, not_measured
from muomni.bench.report.sections import Effort, Found, Say, Target
from muomni.bench.training.case import TrainCase, why_not
from muomni.bench.training.compare import CaseMetrics, Measured, measured, take_turns
from muomni.errors import UserError

BASELINE, TWIN = "the baseline", "the baseline again"
# What a gradient or an update may differ by, as a share of its 2-norm. bf16 keeps 8 bits of every number: its
# gradients are some 1% off; AdamW's first updates take little but the signs, which rounding turns where they hardly
# matter.
_ROUNDING, _ROUNDING_16_BIT, _UPDATES, _APPROXIMATE = 1e-4, 0.05, 0.1, 0.5
# Bytes of a process besides its model, and of training for each weight: itself, its gradient, AdamW's two moments.
_PROCESS_BYTES, _WEIGHT_BYTES = 500 << 20, 16
_MOST_CASES = 9
_TURN_S, _MOST_STEPS = 0.25, 20
_GUESSED_FLOPS = {"cpu": 1e11, "cuda": 2e13, "mps": 1e12}


def measure_train(target: Target, effort: Effort, say: Say, techniques: Sequence[Technique] = TECHNIQUES) -> Found:
    """Measures the techniques of training, or says why one cannot be measured here.

    Raises:
        UserError: training this model does not fit into the memory that is free.
    """
    device = pick_device()
    best = pick_precision("auto", device).name
    # Dropout draws anew wherever a step is cut or compiled another way: what differs then says nothing.
    common = _sizes(target, effort, device) | {"thinker": target.thinker.replace(dropout=0.0), "precision": best}
    techniques = [t for t in measured_by("training step", techniques) if effort.mode == "full" or _is_quick(t, best)]
    room = _room(target, common, device)
    plan = Cases(common)
    reasons: dict[str, str] = {}
    for technique in techniques:
        reason = why_not(plan.case(technique.off_settings)) or why_not(plan.case(technique.on_settings))
        if reason is not None:
            reasons[technique.key] = reason
    steps = _steps(target, common, device)
    rows: dict[str, ReportRow] = {}
    baselines, all_twins, bars = [], [], []
    for group in _groups([t for t in techniques if t.key not in reasons], plan, min(room, _MOST_CASES)):
        refused: dict[str, str] = {}
        enough = effort.enough(effort.train_s)
        found = take_turns(group.cases(plan), effort.rounds, steps, say, refused, enough)
        if BASELINE not in found:
            raise UserError(f"training {target.name} cannot be measured here: {refused[BASELINE]}. {_free(device)}")
        twins = ratios_of(found[TWIN].speeds, found[BASELINE].speeds) if TWIN in found else []
        baselines.append(found[BASELINE].speeds)
        all_twins.append(twins)
        bars += [bar_of(name, figures) for name, figures in found.items() if name != TWIN]
        for technique in group.techniques:
            rows[technique.key] = _row(technique, plan, found, refused, margin_of(twins))
    rows |= {t.key: not_measured(t, reasons[t.key]) for t in techniques if t.key in reasons}
    settings = {key: value for key, value in common.items() if key != "thinker"}
    twins = max(all_twins, key=margin_of, default=[])
    noise = noise_of("the baseline of training", max(baselines, key=spread_of), twins) if baselines else []
    return Found(
        rows=tuple(rows[t.key] for t in techniques),
        noise=tuple(noise),
        margin=margin_of(twins),
        settings=tuple(settings.items()),
        memory=tuple({bar.name: bar for bar in bars}.values()),
    )


def _is_quick(technique: Technique, best: str) -> bool:
    """In a quick run; of the precisions also the one that this device takes by itself."""
    return technique.level == "quick" or technique.on_settings.get("precision") == best


def _sizes(target: Target, effort: Effort, device: torch.device) -> dict[str, Any]:
    """A step that takes a fraction of a second on a CPU; a full one is as long as steps usually are."""
    small = effort.mode == "quick" and device.type == "cpu"
    return {"batch_size": 4, "seq_len": min(256 if small else 512, target.thinker.max_position_embeddings)}


def _steps(target: Target, common: Mapping[str, Any], device: torch.device) -> int:
    tokens: int = common["batch_size"] * common["seq_len"]
    guessed = 6 * target.thinker.num_parameters() * tokens / _GUESSED_FLOPS[device.type]
    return min(max(1, math.ceil(_TURN_S / float(guessed))), _MOST_STEPS)


def _room(target: Target, common: Mapping[str, Any], device: torch.device) -> int:
    """How many cases fit into the memory side by side.

    Raises:
        UserError: not even one with its twin and another one to compare with.
    """
    tokens = common["batch_size"] * common["seq_len"]
    logits = 3 * 4 * tokens * target.thinker.vocab_size
    one = _PROCESS_BYTES + _WEIGHT_BYTES * target.thinker.num_parameters() + logits
    room = int(free_memory(device) / one)
    if room < 1:
        raise UserError(
            f"training {target.name} does not fit: weights, gradients, AdamW and the process take at least "
            f"{one / 2**30:.1f} GiB. {_free(device)}"
        )
    return max(room, 3)


def _free(device: torch.device) -> str:
    return (
        f"{free_memory(device) / 2**30:.1f} GiB are free on {device}: end other programs there, or take a smaller model"
    )


class Cases:
    """Cases by what they are: techniques that are compared with the same one share it."""

    def __init__(self, common: Mapping[str, Any]) -> None:
        self._common = common
        self._names: dict[str, str] = {}
        self.case({}, BASELINE)

    def case(self, fields: Mapping[str, Any], name: str | None = None) -> TrainCase:
        """The case with these fields; its name is that of the first who asked for the same."""
        found = TrainCase.model_validate({**self._common, **fields, "name": "?"})
        key = json.dumps(found.model_dump(mode="json"), sort_keys=True)
        words = ", ".join(f"{key} {value}" for key, value in fields.items())
        return found.replace(name=self._names.setdefault(key, name or words or BASELINE))

    @property
    def baseline(self) -> TrainCase:
        """Everything as the machine's defaults have it."""
        return self.case({})


@dataclass(frozen=True)
class _Group:
    """Techniques whose cases are in memory together."""

    techniques: tuple[Technique, ...]

    def cases(self, plan: Cases) -> list[TrainCase]:
        """The baseline, what the techniques need, and the baseline again."""
        own = [
            plan.case(fields)
            for technique in self.techniques
            for fields in (technique.off_settings, technique.on_settings)
        ]
        named = {case.name: case for case in (plan.baseline, *own)}
        return [*named.values(), plan.baseline.replace(name=TWIN)]


def _groups(techniques: Sequence[Technique], plan: Cases, most: int) -> list[_Group]:
    """As few groups as hold at most `most` cases each, but at least one technique."""
    groups: list[_Group] = []
    for technique in techniques:
        wider = _Group((*groups[-1].techniques, technique)) if groups else None
        if wider is not None and len(wider.cases(plan)) <= most:
            groups[-1] = wider
        else:
            groups.append(_Group((technique,)))
    return groups


def _row(
    technique: Technique, plan: Cases, found: dict[str, CaseMetrics], refused: dict[str, str], margin: float
) -> ReportRow:
    names = [plan.case(fields).name for fields in (technique.off_settings, technique.on_settings)]
    for name in names:
        if name in refused:
            return not_measured(technique, refused[name])
    off, on = (found[name] for name in names)
    half = any(plan.case(fields).precision != "fp32" for fields in (technique.off_settings, technique.on_settings))
    equivalence = equivalence_of(technique, measured(names[1], on, off), half)
    memory = (Memory(off_mib=off.peak_mib, on_mib=on.peak_mib),)
    row = measured_row(technique, off.speeds, on.speeds, equivalence, memory, margin=margin)
    if "compile" not in technique.on_settings:
        return row
    return row.replace(compile_s=max(0.0, on.first["first_step_s"] - off.first["first_step_s"]))


def equivalence_of(technique: Technique, on: Measured, half: bool) -> Equivalence:
    """What the technique changes in the gradients of the first step, or in what three steps did to the weights.

    Args:
        technique: says which class its results are held to.
        on: compared with the case without it.
        half: one of the two computes in 16 bits.
    """
    of_updates = on.update_error is not None
    value = on.gradient_error if on.update_error is None else on.update_error
    equal = bool(on.updates_equal) if of_updates else on.gradients_equal
    rounding = _UPDATES if of_updates else _ROUNDING_16_BIT if half else _ROUNDING
    allowed = {"exact": 0.0, "rounding": rounding, "approximate": _APPROXIMATE, "another optimizer": math.inf}
    what = "what three steps changed" if of_updates else "gradients"
    return Equivalence(
        claimed=technique.equivalence,
        measure=f"{what}, size of the difference over their own",
        value=value,
        equal=equal,
        holds=equal or (technique.equivalence != "exact" and value <= allowed[technique.equivalence]),
    )


def bar_of(name: str, figures: CaseMetrics) -> MemoryBar:
    """A case's peak by category."""
    parts = {f"{part}_mib": size / 2**20 for part, size in figures.first["memory"].items()}
    return MemoryBar(name=name, activations_mib=max(0.0, figures.peak_mib - sum(parts.values())), **parts)
