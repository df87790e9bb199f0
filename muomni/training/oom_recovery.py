"""Out of memory in a step: the step is repeated in smaller micro-batches, or the run ends with advice.

`"on_oom": "shrink_micro_batch"`. The step has changed nothing yet but gradients and random states when its forward or
backward pass fails: the gradients are dropped, the random states put back, and the same rows are cut into
micro-batches of half as many. Rows, their order and the divisor of the loss stay those of the step, so a
run that recovered at its first step ends bit by bit where a run begun with that micro-batch ends. (The
contrastive loss is the exception to the divisor: it compares the captions of a micro-batch, so smaller ones make
it easier.)
The smaller micro-batch is kept for the rest of the run, and in checkpoints.

An optimizer that runs out of memory may have changed weights already, and a smaller micro-batch would not
help it: that ends the run, as does a micro-batch of one row. Several processes do not recover, see
`accel.distributed`.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni.accel.device import random_states, restore_random
from muomni.accel.memory.monitor import MIB, MemoryMonitor
from muomni.accel.memory.out_of_memory import (
    Phase,
    Shortage,
    Workload,
    explain,
    find_shortage,
    remedies,
    write_snapshot,
)
from muomni.accel.mixed_precision import pick_precision
from muomni.accel.step_config import StepConfig
from muomni.data import Batch, Dataset
from muomni.errors import ConfigError, MemoryShortageError
from muomni.model import OmniModel
from muomni.training.checkpoint import last_checkpoint
from muomni.training.optim.build import decay_groups
from muomni.training.optim.muon import Muon
from muomni.training.step import StepResult, TrainStep


@dataclass(frozen=True)
class OomRecovery:
    """One halving of the micro-batch: `before` and `after` in rows; `snapshot` is a file with the allocator's state."""

    step: int
    shortage: Shortage
    before: int
    after: int
    snapshot: Path | None

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.jsonl`."""
        requested = self.shortage.requested
        return {
            "event": "out of memory",
            "phase": self.shortage.phase,
            "requested_mib": None if requested is None else round(requested / MIB, 1),
            "micro_batch_before": self.before,
            "micro_batch": self.after,
            "snapshot": None if self.snapshot is None else self.snapshot.name,
        }

    def __str__(self) -> str:
        rows = "1 row" if self.after == 1 else f"{self.after} rows"
        return f"step {self.step}  {self.shortage}; taken again with micro-batches of {rows} instead of {self.before}"


class RecoveringStep:
    """Fetches this process's rows of a step, cuts them into micro-batches and takes the step.

    Attributes:
        rows_per_step: of all processes.
        monitor: says what memory is used for.

    Args:
        config: of the step.
        seq_len: tokens of a row, for advice; None for pairs of text and speech.
        shrinks: whether a step that runs out of memory is taken again in smaller micro-batches.
        model, step: what is trained and how; the step's group shares the rows.
        rows: where the rows come from.
        run: the run folder, for snapshots.
        micro_batch: rows in a micro-batch, where an earlier recovery made it smaller than `config` says.
    """

    def __init__(
        self,
        config: StepConfig,
        seq_len: int | None,
        shrinks: bool,
        model: OmniModel,
        step: TrainStep,
        rows: Dataset[Batch],
        run: Path,
        micro_batch: int | None = None,
    ) -> None:
        self.config = config
        self.seq_len = seq_len
        self.shrinks = shrinks
        self.model = model
        self.step = step
        self.rows = rows
        self.monitor = MemoryMonitor(model, step.optimizers, model.device)
        self.run = run
        self.rows_per_step = config.rows
        self.micro_batch = min(micro_batch or config.micro_batch, self.rows_per_step // step.group.size)

    @property
    def micro_batches(self) -> int:
        """In which this process takes its rows of a step."""
        return -(-self.rows_per_step // self.step.group.size // self.micro_batch)

    def __call__(self, first: int, number: int, tell: Callable[[OomRecovery], None]) -> tuple[list[Batch], StepResult]:
        """Takes the optimizer step over the rows from `first` on.

        Args:
            first: index of the step's first row.
            number: of the step, for messages.
            tell: called after each recovery.

        Returns:
            This process's micro-batches, on the CPU, and the step's result. Their rows in order are those of
            number r, r + R, r + 2R, ... of the step, with r the rank among R processes.

        Raises:
            MemoryShortageError: memory ran out, and recovery is off or cannot help.
        """
        device = self.model.device
        random = random_states(device) if self.shrinks else {}
        while True:
            batches = self._cut(first)
            self.step.phase = "forward"  # copying the rows to the device counts as that
            try:
                return batches, self.step([batch.to(device) for batch in batches])
            except (RuntimeError, MemoryError) as error:
                shortage = find_shortage(error, self.step.phase)
                if shortage is None:
                    raise
                snapshot = self._snapshot(number)
                if not self.shrinks or shortage.phase == "optimizer" or self.micro_batch == 1:
                    raise self._advice(shortage, number, snapshot) from error
            # Not inside `except`: while the error lives, its traceback holds the tensors of the failed step.
            before, self.micro_batch = self.micro_batch, self.micro_batch // 2
            self._undo(random)
            tell(OomRecovery(number, shortage, before, self.micro_batch, snapshot))

    @contextmanager
    def explained(self, phase: Phase, number: int) -> Iterator[None]:
        """Raises a shortage inside the block as an error with advice; the block is not repeated."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            shortage = find_shortage(error, phase)
            if shortage is None:
                raise
            raise self._advice(shortage, number, self._snapshot(number)) from error

    def _cut(self, first: int) -> list[Batch]:
        """The rows of this process in order; the last micro-batch is short where the size does not divide them."""
        group = self.step.group
        mine = range(first + group.rank, first + self.rows_per_step, group.size)
        cuts = [mine[start : start + self.micro_batch] for start in range(0, len(mine), self.micro_batch)]
        return [self.rows.batch(cut.start, len(cut), group.size) for cut in cuts]

    def _undo(self, random: dict[str, Tensor]) -> None:
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        device = self.model.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()
        restore_random(random, device)

    def _snapshot(self, number: int) -> Path | None:
        return write_snapshot(self.run, f"oom-{number:08d}-{self.micro_batch}", self.model.device)

    def _advice(self, shortage: Shortage, number: int, snapshot: Path | None) -> MemoryShortageError:
        device = self.model.device
        reading = self.monitor.read()
        now = self.monitor.categories_now(reading)
        at_peak = self.monitor.categories(reading).activations or 0
        activations = max(at_peak, (now.activations or 0) + (shortage.requested or 0))
        load = self._workload()
        lines = [explain(shortage, load, device, now, remedies(load, activations, shortage.phase))]
        if snapshot is not None:
            lines.append(f"The allocator's state is in {snapshot}.")
        saved = last_checkpoint(self.run) is not None
        if saved:
            lines.append(f"{self.run / 'last'} keeps the last checkpoint.")
        if not self.shrinks and shortage.phase in ("forward", "backward") and self.micro_batch > 1:
            resumed = ", also in a run that is resumed" if saved else ""
            lines.append(f'"on_oom": "shrink_micro_batch" halves the micro-batch by itself and goes on{resumed}.')
        return MemoryShortageError(f"step {number}: " + "\n".join(lines))

    def _workload(self) -> Workload:
        thinker = self.model.config.thinker
        try:
            pick_precision("bf16", self.model.device)
            bf16_works = True
        except ConfigError:
            bf16_works = False
        return Workload(
            step=self.config,
            micro_batch=self.micro_batch,
            seq_len=self.seq_len,
            optimizer="muon" if any(isinstance(each, Muon) for each in self.step.optimizers) else "adamw",
            bf16_works=bf16_works,
            layers=thinker.num_hidden_layers,
            hidden_size=thinker.hidden_size,
            matrix_bytes=sum(p.numel() * p.element_size() for _, p in decay_groups(self.model)[0]),
        )
