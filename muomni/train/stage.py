"""A stage from its recipe: data, tokenizer, model, optimizer, then the loop."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.accel.distributed import connect
from muomni.accel.memory.monitor import MemoryReport
from muomni.config import Recipe, parse, read_json
from muomni.data import Tokenizer
from muomni.errors import ConfigError, UserError
from muomni.files import write_atomic
from muomni.train.checkpoint import Progress, load_checkpoint
from muomni.train.forecast.accuracy import remember_error
from muomni.train.omni_task import OmniTask, Sampler
from muomni.train.reporting.metrics_log import METRICS, plot_losses, read_lines
from muomni.train.reporting.run_log import RunLog
from muomni.train.resolve import DECLINED, ResolvedRun, resolve
from muomni.train.setup import build, find_tokenizer, open_rows
from muomni.train.task import Task, restore_step
from muomni.train.trainer import Trainer
from muomni.train.tune.search import as_tuned, tune

RECIPE = "recipe.json"
MEMORY = "memory.json"
# What may differ between a run and its resumption: nothing that changes what is computed. With `on_oom`
# that is so until memory runs out, where the other choice is the end of the run.
# Another number of processes, or another way to share the work, changes rounding and what dropout draws.
_MAY_CHANGE = {"schema_", "name", "log_every", "checkpoint", "eval", "on_oom", "allocator", "parallel", "tune"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: its folder.
        progress: where it stands, with the best validation loss.
        total_steps: optimizer steps of the whole run.
        stopped: a signal ended it before its last step.
        plot: the file of the loss curve; None without a step, and in processes that are not `is_main`.
        memory: what was used, and for what.
        is_main: this process reports the run.
    """

    run: Path
    progress: Progress
    total_steps: int
    stopped: bool
    plot: Path | None
    memory: MemoryReport
    is_main: bool = True

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of the run's `metrics.jsonl`, from its first step on.

        Args:
            kind: of lines, such as `train`, `val` or `speed`; None gives all.
        """
        lines = read_lines(self.run / METRICS)
        return [line for line in lines if kind is None or line["kind"] == kind]


def train(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None = None,
) -> TrainResult:
    """Trains, or goes on training. Under torchrun every process calls this, with the same arguments.

    Args:
        recipe: the whole stage.
        run: the run folder; made here. Without `resume` it must not hold a run.
        resume: go on from `run/last`, bit by bit as if the run had never stopped (on a CPU with the
            same number of threads, and of processes; with another number rounding differs, and dropout's draws).
        resume_from: go on from this checkpoint of the run instead.
        make_sampler: gives the function that writes sample texts.

    Raises:
        UserError: recipe, data or folders cannot be used.
        CheckpointError: a checkpoint does not load or could not be written.
        TrainingError: the loss stays non-finite, or another process of the run ended.
        MemoryShortageError: memory ran out; see the recipe's `on_oom`.
    """
    start = _starting_point(recipe, run, resume, resume_from)
    if recipe.tune and start is not None:
        recipe = as_tuned(recipe, run)
    if start is not None and (run / RECIPE).is_file():
        _check_same(recipe, parse(Recipe, read_json(run / RECIPE), str(run / RECIPE)), run)
    if recipe.codec is not None:
        from muomni.train.codec.task import open_codec_task

        return _run(open_codec_task(recipe, run, start), recipe, run, start, {})
    resolved, tokenizer = resolve(recipe, None if start is None else run), None
    if recipe.tune and start is None:
        _make_folder(run)
        recipe, tokenizer = tune(recipe, run)
        resolved = resolve(recipe)
    with _open_omni_task(resolved, run, start, tokenizer, make_sampler) as task:
        return _run(task, recipe, run, start, resolved.plan.declined)


@contextmanager
def _open_omni_task(
    resolved: ResolvedRun,
    run: Path,
    start: Path | None,
    tokenizer: Tokenizer | None,
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None,
) -> Iterator[OmniTask]:
    recipe, plan = resolved.recipe, resolved.plan
    plan.begin()
    with connect(plan.parallel, plan.device) as group:
        if tokenizer is None:
            tokenizer = group.from_main(lambda: find_tokenizer(recipe, start))
        with open_rows(resolved, tokenizer, group) as read:
            total_steps = recipe.num_steps(read.rows.train.num_rows)
            model, step = build(resolved, read.config, group, total_steps)
            progress = Progress()
            if start is not None:
                progress = load_checkpoint(start, model, step.optimizers, group)
                restore_step(step, progress.counts, progress.scaler)
            sampler = make_sampler(tokenizer, recipe) if make_sampler is not None else None
            yield OmniTask(resolved, total_steps, model, tokenizer, step, read.rows, run, progress, sampler)


def _run(task: Task, recipe: Recipe, run: Path, start: Path | None, declined: Mapping[str, str]) -> TrainResult:
    """Runs a task in the folder of its run."""
    progress, total_steps, group = task.progress, task.total_steps, task.group
    if start is not None and progress.applied >= total_steps:
        raise UserError(f"{run} is complete: it has taken all of its {total_steps} steps")
    if group.is_main:
        _make_folder(run)
        stored = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
        write_atomic(run / RECIPE, json.dumps(stored, indent=2) + "\n")
        if start is None:
            write_atomic(run / DECLINED, json.dumps(declined) + "\n")
    with RunLog(run, total_steps, progress.applied, not group.is_main) as log:
        for text in task.opening():
            log.say(text)
        trainer = Trainer(task, recipe.eval, recipe.checkpoint, recipe.log_every, log)
        task.begin(log)
        trainer.train()
    memory = task.monitor.report()
    plot = None
    if group.is_main:
        report = memory.as_dict()
        forecast = task.memory_forecast(memory)
        if forecast is not None:
            remember_error(task.monitor.device, forecast)
            report["forecast"] = forecast
        write_atomic(run / MEMORY, json.dumps(report, indent=2) + "\n")
        plot = plot_losses(run, task.loss_unit) if progress.applied else None
    return TrainResult(run, progress, total_steps, trainer.stopped, plot, memory, group.is_main)


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: the run folder cannot be made: {error.strerror}; --out names another one") from None


def _starting_point(recipe: Recipe, run: Path, resume: bool, resume_from: Path | None) -> Path | None:
    """The checkpoint to go on from, after checking that the folder and the recipe allow it."""
    has_run = (run / "last").exists() or any(run.glob("step-*"))
    if not resume and resume_from is None:
        if has_run:
            raise UserError(f"{run} already holds a run; --resume goes on with it, --out names another folder")
        return None
    start = resume_from if resume_from is not None else run / "last"
    if not (start / "training").is_dir():
        raise UserError(f"nothing to resume: {start} is not a checkpoint with training state")
    return start.resolve()


def _check_same(recipe: Recipe, earlier: Recipe, run: Path) -> None:
    now, before = _plain(recipe), _plain(earlier)
    changed = [
        f"{key}: {before[key]!r} became {now[key]!r}"
        for key in now
        if key not in _MAY_CHANGE and now[key] != before[key]
    ]
    if changed:
        raise ConfigError(
            f"{run} was started with another recipe, so going on would not continue it: {'; '.join(changed)}. "
            f"Resume with {run / RECIPE}, or start a new run from its weights with model.init_from"
        )


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Plain values, but for how many threads read the data and when bad data ends the run."""
    values = recipe.model_dump(mode="json")
    return values | {
        "data": {k: v for k, v in values["data"].items() if k not in ("num_workers", "max_unreadable_fraction")}
    }
