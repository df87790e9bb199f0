"""What a report suggests: a recipe fragment, what a chat is to do, and words for what neither says.

The fragment holds what was faster on this machine and changes neither the batch, nor the learning rate, nor the
class of the results. What made no difference is left out, so that a recipe's own choice stays. A section `chat` says
what `muomni chat --tuned-config` heeds; recipes leave it alone.

What `auto` settings heed without being told, the verdicts, is kept for this machine and model
(`accel.measurements.verdicts`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muomni.accel.device import pick_device
from muomni.accel.measurements import verdicts
from muomni.accel.measurements.verdicts import Verdict
from muomni.bench.report.report import Report, ReportRow
from muomni.bench.report.sections import Target
from muomni.config.loader import CHAT
from muomni.files import atomic_file

TUNED = "tuned.json"
# Key of a row: the recipe's key, its value where the verdict is on, and where it is off (None: left out).
_RECIPE: tuple[tuple[str, str, str | None, str | None], ...] = (
    ("precision-fp16", "precision", "fp16", "fp32"),
    ("precision-bf16", "precision", "bf16", "fp32"),
    ("checkpointing-full", "gradient_checkpointing", "full", None),
    ("checkpointing-selective", "gradient_checkpointing", "selective", None),
    ("attention-varlen", "attention", "varlen", None),
    ("attention-flash", "attention", "flash_attn", None),
    ("compile", "compile", "blocks", "off"),
    ("compile-full", "compile", "full", None),
    ("allocator", "allocator", None, "system"),  # where they are on, `auto` takes them
    ("allocator-pool", "allocator", None, "retain"),
)


# Rows that `auto` settings heed.
_HEEDED = {
    "train": (verdicts.ALLOCATOR, verdicts.POOL, verdicts.BF16, verdicts.FP16, verdicts.VARLEN, verdicts.COMPILE),
    "infer": (verdicts.DECODE_STEP,),
    "speech": (verdicts.TALKER_STEP,),
}


def fragment(rows: Sequence[ReportRow]) -> dict[str, Any]:
    """The keys of a recipe that measurements speak for; of two that are on for one key, the faster one.

    Where int8 weights were measured, `chat` says whether they were faster.
    """
    chosen: dict[str, tuple[float, str]] = {}
    for key, name, on, off in _RECIPE:
        row = next((row for row in rows if row.key == key), None)
        if row is None or row.speed is None:
            continue
        value = on if row.verdict == "on" else off if row.verdict == "off" else None
        if value is None:
            continue
        speed = row.speed.ratio if row.verdict == "on" else 0.0
        if name not in chosen or speed > chosen[name][0]:
            chosen[name] = (speed, value)
    found: dict[str, Any] = {name: value for name, (_, value) in chosen.items()}
    int8 = next((row for row in rows if row.key == "int8" and row.speed is not None), None)
    if int8 is not None:
        found[CHAT] = {"int8": int8.verdict == "on"}
    return found


def remember(report: Report, target: Target) -> list[str]:
    """Keeps the verdicts that `auto` settings heed; returns the keys of those that lost."""
    from muomni.formats.pretrained import read_quantization

    device = pick_device()
    int8 = target.folder is not None and read_quantization(target.folder) is not None
    lost = []
    for part, keys in _HEEDED.items():
        rows = [row for row in report.rows if row.key in keys and row.speed is not None]
        found = {
            row.key: Verdict(row.verdict, row.speed.off, row.speed.on, row.speed.unit, report.date)
            for row in rows
            if row.speed is not None
        }
        verdicts.save_verdicts(device, target.thinker, found, "int8" if int8 and part != "train" else "float")
        lost += [key for key, one in found.items() if one.lost]
    return lost


def advice(rows: Sequence[ReportRow], run: str | None) -> tuple[str, ...]:
    """What to type for the winners of inference that are not taken by themselves.

    Args:
        rows: of a report.
        run: the run that was measured; None for a preset.
    """
    named = run or "RUN"
    said = []
    for row in rows:
        if row.verdict != "on" or row.speed is None:
            continue
        gain = f"{row.speed.ratio:.1f}×"
        if row.key == "int8":
            said.append(
                f"int8 weights decode {gain} as fast: muomni chat {named} --tuned-config {TUNED}, "
                f"or muomni quantize {named}"
            )
        if row.key == "speculation":
            said.append(f"guessing is {gain} as fast: muomni chat {named} --speculate --temperature 0")
        if row.key == "batching":
            said.append(f"{gain} the tokens/s with prompts side by side: muomni generate {named} --batch FILE")
    return tuple(said)


def save(values: dict[str, Any], path: Path, machine: str, date: str) -> None:
    """Writes the fragment with a comment on how to use it."""
    head = (
        f"// What muomni bench measured to be faster on: {machine}; {date}.\n"
        f'// muomni train RECIPE --set @{path.name}, or "extends": "{path.name}" in a recipe.\n'
        f"// muomni chat RUN --tuned-config {path.name}\n"
    )
    with atomic_file(path) as partial:
        partial.write_text(head + json.dumps(values, indent=2) + "\n", encoding="utf-8")
