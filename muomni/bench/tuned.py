"""What a report suggests: a recipe fragment, and words for what no recipe says.

The fragment holds what was faster on this machine and changes neither the batch, nor the learning rate, nor the
class of the results. What made no difference is left out, so that a recipe's own choice stays.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muomni.bench.report import Row
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
    ("allocator-pool", "allocator", None, "keep"),
)


def fragment(rows: Sequence[Row]) -> dict[str, Any]:
    """The keys of a recipe that measurements speak for; of two that are on for one key, the faster one."""
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
    return {name: value for name, (_, value) in chosen.items()}


def advice(rows: Sequence[Row], run: str | None) -> tuple[str, ...]:
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
            said.append(f"int8 weights decode {gain} as fast: muomni quantize {named}, then chat with what it writes")
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
    )
    with atomic_file(path) as partial:
        partial.write_text(head + json.dumps(values, indent=2) + "\n", encoding="utf-8")
