"""When memory runs out: recognise it, say it in words, estimate what would help.

The estimates come from the activations that were measured (see `memory`), which grow in proportion to the
rows and tokens of a micro-batch. They are rough: parts that do not grow with it, such as the blocks of
the loss, are not told apart.

On a CPU, Linux seldom refuses memory: it kills the process instead, and then none of this runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from muomni.accel.memory.monitor import MIB, Categories
from muomni.accel.step_config import StepConfig

Phase = Literal["forward", "backward", "optimizer", "validation"]

# Of the activations of fp32, measured from 4 × 64 to 16 × 64 tokens on nano, tiny and small: 0.28 to 0.31. The
# rest stays in fp32 (residual stream, norms). Off that goes the copy of the matrices in bf16.
BF16_SAVES = 0.3
_WHERE = {
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "validation": "in validation",
}
_UNITS = {"bytes": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}
_ASKED = re.compile(r"(?:[Tt]ried|[Uu]nable) to allocate ([\d.]+) (bytes|[KMGTP])")


@dataclass(frozen=True)
class Shortage:
    """Memory that could not be had: `requested` bytes, None where the error does not say."""

    phase: Phase
    requested: int | None

    def __str__(self) -> str:
        asked = f": {self.requested / MIB:,.1f} MiB more were asked for" if self.requested is not None else ""
        return f"out of memory {_WHERE[self.phase]}{asked}"


@dataclass(frozen=True)
class Workload:
    """What the estimates need to know of a run.

    Attributes:
        step: as it was decided; its precision is no `auto`.
        micro_batch: rows in a micro-batch, which a recovery makes smaller than the step configuration's.
        seq_len: tokens of a row; None for pairs of text and speech, whose length is not known here.
        optimizer: its name in a recipe.
        bf16_works: whether bf16 could be had.
        layers, hidden_size: of the model.
        matrix_bytes: of the hidden matrices, for which Muon keeps one buffer instead of AdamW's two.
    """

    step: StepConfig
    micro_batch: int
    seq_len: int | None
    optimizer: str
    bf16_works: bool
    layers: int
    hidden_size: int
    matrix_bytes: int


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, the bytes it saves (about; None: not known) and what it costs."""

    setting: str
    saving: int | None
    cost: str

    def __str__(self) -> str:
        saving = "saving not known" if self.saving is None else f"about {self.saving / MIB:,.1f} MiB less"
        return f"{self.setting}: {saving}; {self.cost}"


def find_shortage(error: BaseException, phase: Phase) -> Shortage | None:
    """What an error says if it means that memory ran out, else None."""
    text = str(error)
    known = (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in text)
        or (isinstance(error, RuntimeError) and "MPS backend out of memory" in text)
    )
    if not known:
        return None
    asked = _ASKED.search(text)
    return Shortage(phase, int(float(asked[1]) * _UNITS[asked[2]]) if asked else None)


def remedies(load: Workload, activations: int, phase: Phase) -> list[Remedy]:
    """Changes of the recipe that use less memory, the one that saves most first.

    Args:
        load: the run.
        activations: bytes in use by them; 0 where not known, then without estimates.
        phase: where memory ran out. The optimizer's step holds no activations, and validation keeps none.
    """
    found: list[Remedy] = []
    if phase != "optimizer":
        found += _smaller_batch(load, activations)
        if load.step.precision == "fp32" and load.bf16_works:
            saving = max(0, int(activations * BF16_SAVES) - load.matrix_bytes // 2)
            found.append(Remedy('"precision": "bf16"', saving, "faster, and sums differ in the third digit"))
        if load.seq_len is not None:
            cost = "the model learns from shorter texts"
            found.append(Remedy(f'"data": {{"seq_len": {load.seq_len // 2}}}', activations // 2, cost))
    if phase in ("forward", "backward") and load.step.checkpointing != "full":
        cost = 'the same result, a third more time ("selective" saves less and costs less)'
        found.append(Remedy('"gradient_checkpointing": "full"', _recomputing(load, activations), cost))
    if phase != "validation" and load.optimizer == "adamw":
        cost = "other steps: tune the learning rate anew"
        found.append(Remedy('"optimizer": {"name": "muon"}', load.matrix_bytes, cost))
    if not activations:
        return [Remedy(r.setting, r.saving if "muon" in r.setting else None, r.cost) for r in found]
    return sorted((r for r in found if r.saving), key=lambda r: -(r.saving or 0))


def explain(shortage: Shortage, load: Workload, device: torch.device, now: Categories, best: Sequence[Remedy]) -> str:
    """The message: what was asked for, what is in use, and the three changes that would help most."""
    what = "pairs of text and speech" if load.seq_len is None else f"rows × {load.seq_len} tokens"
    lines = [
        f"{shortage} on {device}, with micro-batches of {load.micro_batch} {what}.",
        f"In use: {now} (activations: what is left when the others are taken off).",
    ]
    if best:
        lines.append("What would help most:")
        lines += [f"  {number}. {remedy}" for number, remedy in enumerate(best[:3], 1)]
    else:
        lines.append("No setting would help here; a smaller model would.")
    return "\n".join(lines)


def write_snapshot(run: Path, name: str, device: torch.device) -> Path | None:
    """Writes what the GPU's allocator holds into `run`; None on other devices.

    With `torch.cuda.memory._record_memory_history()` on, a snapshot for https://pytorch.org/memory_viz
    (a pickle, which μOmni never reads), else the allocator's own summary as text.
    """
    if device.type != "cuda":
        return None
    if torch._C._cuda_isHistoryEnabled():  # noqa: SLF001 - as torch documents it
        path = run / f"{name}.pickle"
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]  # noqa: SLF001
        return path
    path = run / f"{name}.txt"
    path.write_text(torch.cuda.memory_summary(device), encoding="utf-8")
    return path


def _smaller_batch(load: Workload, activations: int) -> list[Remedy]:
    """The largest micro-batch of at most half the rows that cuts a step evenly."""
    rows = load.step.rows
    sizes = [size for size in range(1, load.micro_batch // 2 + 1) if rows % size == 0]
    if not sizes:
        return []
    setting = f'"batch_size": {sizes[-1]}, "gradient_accumulation_steps": {rows // sizes[-1]}'
    saving = activations - activations * sizes[-1] // load.micro_batch
    return [Remedy(setting, saving, "the same effective batch, a little slower")]


def _recomputing(load: Workload, activations: int) -> int:
    """What full checkpointing saves: all but each block's input, and one block at a time in full."""
    inputs = load.layers * load.micro_batch * (load.seq_len or 0) * load.hidden_size * 4
    return max(0, activations - inputs - activations // load.layers)
