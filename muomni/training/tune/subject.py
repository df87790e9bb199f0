"""Optimizer steps of a recipe, for `accel.measurements.worker`: where memory runs out only that process ends."""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from muomni.accel.distributed import connect
from muomni.accel.measurements.worker import Answer, StepTimer
from muomni.config import Recipe, parse
from muomni.data import PreparedRows, Tokenizer
from muomni.training.oom_recovery import RecoveringStep
from muomni.training.resolve import resolve
from muomni.training.setup import Read, build, open_rows
from muomni.training.synthetic_rows import RandomRows


class RecipeSubject(StepTimer):
    """A recipe that is ready to take steps, from its first row on.

    Args:
        recipe: of a run that is not tuned, stops where memory runs out, and says what is compiled.
        tokenizer: the folder of the run's; None takes random tokens instead of the recipe's data.
        memory: bytes that the process may take on a CPU; None for no limit.

    Attributes:
        first: the first step's; `total_steps` of the run; `reads_ahead`, whether threads read the data.

    Raises:
        UserError: the recipe cannot be trained here.
        MemoryShortageError: memory ran out.
    """

    def __init__(self, recipe: dict[str, Any], tokenizer: str | None, memory: int | None) -> None:
        resolved = resolve(parse(Recipe, recipe, "the trial"))
        resolved.plan.begin()
        if memory is not None:
            _limit(memory)
        self._stack = ExitStack()
        group = self._stack.enter_context(connect(resolved.plan.parallel, resolved.plan.device))
        if tokenizer is None:
            config = resolved.model.config
            random = RandomRows(resolved.step.rows, resolved.data.seq_len, config.thinker.vocab_size)
            read = Read(PreparedRows(random, random), config)
        else:
            read = self._stack.enter_context(open_rows(resolved, Tokenizer.load(Path(tokenizer)), group))
        rows = read.rows.train
        total = resolved.optim.num_steps(rows.num_rows)
        self._model, step = build(resolved, read.config, group, total)
        step.model.train()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        seq_len = resolved.data.seq_len if resolved.data.train else None
        self._step = RecoveringStep(resolved.step, seq_len, False, self._model, step, rows, folder)
        self._taken = 0
        self.first = self.take() | {"total_steps": total, "reads_ahead": rows.num_workers > 0}

    def take(self) -> Answer:
        """Takes a step: its seconds, and `peak`, bytes of the process or of the GPU so far."""
        began = time.perf_counter()
        self._step(self._taken * self._step.rows_per_step, self._taken + 1, lambda _: None)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        self._taken += 1
        seconds = time.perf_counter() - began
        reading = self._step.monitor.read()
        return {"step_s": seconds, "peak": reading.reserved_peak or reading.peak}


def _limit(size: int) -> None:
    """Lets allocations beyond so many bytes fail, instead of letting the system choose which process to kill."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
