"""Times a few optimizer steps of a recipe in a process of their own: `python -m muomni.train.tune.worker`.

Its peak memory is its own, and where memory runs out only this process ends. `train.tune.search` asks it.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from muomni.accel.distributed import connect
from muomni.accel.memory.monitor import MemoryMonitor
from muomni.accel.memory.out_of_memory import find_shortage
from muomni.child_process import serve
from muomni.config import Recipe, parse
from muomni.data import Tokenizer
from muomni.errors import MemoryShortageError, UserError
from muomni.train.oom_recovery import RecoveringStep
from muomni.train.resolve import resolve
from muomni.train.setup import build, open_rows

_LEAST_STEPS, _MOST_STEPS = 3, 20


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """What `measure` returns; `short` or `refused` says why nothing could be measured."""
    try:
        return measure(**command)
    except (MemoryShortageError, MemoryError) as error:
        return {"short": _first_line(error)}
    except UserError as error:
        return {"refused": str(error)}
    except RuntimeError as error:
        if find_shortage(error, "forward") is None:
            raise
        return {"short": _first_line(error)}


def measure(recipe: dict[str, Any], tokenizer: str, seconds: float, memory: int | None) -> dict[str, Any]:
    """Takes steps of the recipe from its first row on.

    Args:
        recipe: of a run that is not tuned, stops where memory runs out, and says what is compiled.
        tokenizer: the folder of the one that the run has.
        seconds: that steps are repeated for, warm-up apart; three steps are taken in any case, and at most 20.
        memory: bytes that the process may take on a CPU; None for no limit.

    Returns:
        `step_s`, of each step after the warm-up; `first_s`, of the first; `peak`, bytes; `total_steps` of the run;
        `reads_ahead`, whether threads read the data.

    Raises:
        UserError: the recipe cannot be trained here.
        MemoryShortageError: memory ran out.
    """
    asked = parse(Recipe, recipe, "the trial")
    resolved = resolve(asked)
    plan = resolved.plan
    plan.begin()
    if memory is not None:
        _limit(memory)
    with connect(plan.parallel, plan.device) as group, tempfile.TemporaryDirectory() as folder:
        words = Tokenizer.load(Path(tokenizer))
        with open_rows(resolved, words, group) as read:
            rows = read.rows.train
            total = asked.num_steps(rows.num_rows)
            model, step = build(resolved, read.config, group, total)
            model.train()
            monitor = MemoryMonitor(model, step.optimizers, model.device)
            taken = RecoveringStep(asked, model, step, rows, monitor, Path(folder), asked.batch_size)
            times: list[float] = []
            end = float("inf")
            while len(times) <= _LEAST_STEPS or (time.perf_counter() < end and len(times) <= _MOST_STEPS):
                began = time.perf_counter()
                taken(len(times) * taken.rows_per_step, len(times) + 1, lambda _: None)
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                times.append(time.perf_counter() - began)
                if len(times) == 1:
                    end = time.perf_counter() + seconds
            reading = monitor.read()
            return {
                "step_s": times[1:],
                "first_s": times[0],
                "peak": reading.reserved_peak or reading.peak,
                "total_steps": total,
                "reads_ahead": read.rows.train.num_workers > 0,
            }


def _limit(size: int) -> None:
    """Lets allocations beyond so many bytes fail, instead of letting the system choose which process to kill."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


if __name__ == "__main__":
    serve(answer)
