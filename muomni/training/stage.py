"""A stage from its recipe: data, tokenizer, model, optimizer, then the loop."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.distributed import connect
from muomni.accel.memory.monitor import MemoryReport
from muomni.config import Recipe, parse, read_json
from muomni.config.recipe import EvalSpec
from muomni.data import Tokenizer
from muomni.errors import ConfigError, UserError
from muomni.files import follow, write_atomic
from muomni.training.checkpoint import Progress, load_checkpoint
from muomni.training.forecast.accuracy import remember_error
from muomni.training.omni_task import OmniTask, Sampler
from muomni.training.reporting.metrics_log import METRICS, plot_losses, read_lines
from muomni.training.reporting.run_log import RunLog
from muomni.training.resolve import DECLINED, CodecRun, ModelRun, ResolvedRun, resolve, resolve_codec
from muomni.training.run_folder import changes, data_of, only_writer, refuse_changes
from muomni.training.setup import build, find_tokenizer, open_rows
from muomni.training.task import Task, restore_step
from muomni.training.trainer import Trainer
from muomni.training.tune.search import as_tuned, tune

RECIPE = "recipe.json"
MEMORY = "memory.json"
MakeSampler = Callable[[Tokenizer, EvalSpec, int], Sampler]


class RunCompleteError(UserError):
    """There is nothing to go on with.

    Attributes:
        progress: where the run stands.
    """

    def __init__(self, message: str, progress: Progress) -> None:
        super().__init__(message)
        self.progress = progress


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
    allow_changed: bool = False,
    make_sampler: MakeSampler | None = None,
) -> TrainResult:
    """Trains, or goes on training. Under torchrun every process calls this, with the same arguments.

    Args:
        recipe: the whole stage.
        run: the run folder; made here. Without `resume` it must not hold a run.
        resume: go on from `run/last`, bit by bit as if the run had never stopped (on a CPU with the
            same number of threads, and of processes; with another number rounding differs, and dropout's draws).
        resume_from: go on from this checkpoint of the run instead.
        allow_changed: go on although recipe or data are not what they were; only optimizer.lr may always change.
        make_sampler: gives the function that writes sample texts, for a tokenizer, prompts and a seed.

    Raises:
        UserError: recipe, data or folders cannot be used.
        CheckpointError: a checkpoint does not load or could not be written.
        TrainingError: the loss stays non-finite, or another process of the run ended.
        MemoryShortageError: memory ran out; see the recipe's `on_oom`.
    """
    # Under torchrun the first process writes.
    writer = only_writer(run) if os.environ.get("RANK", "0") == "0" else nullcontext()
    with writer:
        start = _starting_point(run, resume, resume_from)
        if recipe.tune and start is not None:
            recipe = as_tuned(recipe, run)
        changed = [] if start is None else _check_same(recipe, start, run, allow_changed)
        resolved: ModelRun | CodecRun
        tokenizer = None
        if recipe.codec is not None:
            resolved = resolve_codec(recipe)
        else:
            resolved = resolve(recipe, None if start is None else run)
            if recipe.tune and start is None:
                recipe, tokenizer = tune(recipe, run)
                resolved = resolve(recipe)
        with _open_task(resolved, run, start, tokenizer, make_sampler) as task:
            _check_goes_on(task, resolved, run, start, allow_changed)
            if task.group.is_main:
                stored = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
                write_atomic(run / RECIPE, json.dumps(stored, indent=2) + "\n")
                if start is None:
                    declined = resolved.plan.declined if isinstance(resolved, ModelRun) else {}
                    write_atomic(run / DECLINED, json.dumps(declined) + "\n")
            return _run(task, resolved, run, changed)


@contextmanager
def _open_task(
    resolved: ModelRun | CodecRun,
    run: Path,
    start: Path | None,
    tokenizer: Tokenizer | None,
    make_sampler: MakeSampler | None,
) -> Iterator[Task]:
    if isinstance(resolved, CodecRun):
        from muomni.training.codec.task import CodecTask

        allocator.apply(resolved.allocator)
        yield CodecTask(resolved, run, start)
        return
    plan = resolved.plan
    plan.begin()
    with connect(plan.parallel, plan.device) as group:
        if tokenizer is None:
            folder = start or resolved.model.folder
            tokenizer = group.from_main(lambda: find_tokenizer(resolved.tokenizer, resolved.data, folder))
        with open_rows(resolved, tokenizer, group) as read:
            model, step = build(resolved, read.config, group, resolved.optim.num_steps(read.rows.train.num_rows))
            progress = Progress()
            if start is not None:
                progress = load_checkpoint(start, model, step.optimizers, group)
                restore_step(step, progress.counts, progress.scaler)
            sampler = None if make_sampler is None else make_sampler(tokenizer, resolved.eval, resolved.seed)
            _check_prompts(resolved.eval, tokenizer, read.config.thinker.max_position_embeddings)
            yield OmniTask(resolved, model, tokenizer, step, read.rows, run, progress, sampler)


def _check_goes_on(task: Task, resolved: ResolvedRun, run: Path, start: Path | None, allow_changed: bool) -> None:
    """Refuses a run that has ended or whose data are others than those of its checkpoint; notes what they are now."""
    progress, data = task.progress, task.group.from_main(lambda: data_of(resolved.data))
    if start is not None:
        if progress.data and progress.data != data:
            refuse_changes(["the training data are not what they were"], start, allow_changed)
        if progress.applied >= task.total_steps:
            raise RunCompleteError(f"{run} is complete: it has taken all of its {task.total_steps} steps", progress)
    progress.data = data


def _run(task: Task, resolved: ResolvedRun, run: Path, changed: Sequence[str]) -> TrainResult:
    """Runs a task in the folder of its run."""
    progress, total_steps, group = task.progress, task.total_steps, task.group
    with RunLog(run, total_steps, progress.applied, progress.attempts, not group.is_main) as log:
        for text in (*task.opening(), *changed):
            log.say(text)
        trainer = Trainer(task, resolved.eval, resolved.checkpoint, resolved.log_every, log)
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


def _starting_point(run: Path, resume: bool, resume_from: Path | None) -> Path | None:
    """The checkpoint to go on from, after checking that the folder allows it."""
    if not resume and resume_from is None:
        if (run / "last").exists() or any(run.glob("step-*")):
            raise UserError(f"{run} already holds a run; --resume goes on with it, --out names another folder")
        return None
    start = follow(resume_from) if resume_from is not None else follow(run / "last")
    if not (start / "training").is_dir():
        others = sorted(path.name for path in run.glob("step-*") if (path / "training").is_dir())
        hint = f"; {run} has {', '.join(others[-3:])} (--resume-from)" if others else ""
        raise UserError(f"nothing to resume: {start} is not a checkpoint with training state{hint}")
    return start.resolve()


def _check_same(recipe: Recipe, start: Path, run: Path, allow_changed: bool) -> list[str]:
    """Refuses another recipe than that of the checkpoint; returns what is changed and may be.

    Raises:
        ConfigError: it is another one.
    """
    stored = next((folder / RECIPE for folder in (start.parent, run) if (folder / RECIPE).is_file()), None)
    if stored is None:
        return []
    found = changes(recipe, parse(Recipe, read_json(stored), str(stored)))
    rate = [change for change in found if change.startswith("optimizer.lr:")]
    refuse_changes([change for change in found if change not in rate], start, allow_changed)
    return found


def _check_prompts(evaluation: EvalSpec, tokenizer: Tokenizer, context: int) -> None:
    """Refuses sample prompts that could not be continued, before the run begins.

    Raises:
        ConfigError: one is empty or fills the context.
    """
    for number, prompt in enumerate(evaluation.prompts if evaluation.sample_every else ()):
        length = len(tokenizer.encode(prompt))
        if not 0 < length < context:
            raise ConfigError(f"eval.prompts.{number}: has {length} tokens: it must have 1 to {context - 1}")
