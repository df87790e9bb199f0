"""A stage from its recipe: data, tokenizer, model, optimizer, then the loop."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muomni.accel.compile import blocks as compilation
from muomni.accel.compile import trial as compile_trial
from muomni.accel.distributed import Group, connect
from muomni.accel.execution_plan import Plan
from muomni.accel.measurements import verdicts
from muomni.accel.memory.monitor import MemoryReport
from muomni.config import Recipe, parse, read_json
from muomni.data import Dataset, Tokenizer
from muomni.errors import ConfigError, UserError
from muomni.files import write_atomic
from muomni.model import OmniModel
from muomni.progress import ProgressLine
from muomni.train.checkpoint import Progress, load_checkpoint
from muomni.train.forecast.accuracy import remember_error
from muomni.train.forecast.memory import beside
from muomni.train.init_model import check_model
from muomni.train.optim.build import check_optimizer
from muomni.train.reporting.metrics_log import MetricsLog, plot_losses, tensorboard_installed
from muomni.train.setup import DECLINED, Read, build, count_steps, find_tokenizer, open_rows, plan_of
from muomni.train.trainer import Sampler, Trainer
from muomni.train.tune.search import as_tuned, tune

RECIPE = "recipe.json"
MEMORY = "memory.json"
# What may differ between a run and its resumption: nothing that changes what is computed. With `on_oom`
# that is so until memory runs out, where the other choice is the end of the run.
# Another number of processes, or another way to share the work, changes rounding and what dropout draws.
_MAY_CHANGE = {"schema_", "name", "log_every", "checkpoint", "eval", "on_oom", "allocator", "parallel", "tune"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped` says that Ctrl-C ended it before its last step, and `is_main` that this process
    reports it; the others have no `plot`."""

    run: Path
    progress: Progress
    total_steps: int
    stopped: bool
    plot: Path | None
    memory: MemoryReport
    is_main: bool = True


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
        return _train_codec(recipe, run, start)
    check_model(recipe)
    plan, tokenizer = plan_of(recipe, None if start is None else run), None
    check_optimizer(recipe.optimizer, plan.precision)
    if recipe.tune and start is None:
        _make_folder(run)
        recipe, tokenizer = tune(recipe, run)
        plan = plan_of(recipe)
    plan.begin()
    with connect(plan.parallel, plan.device) as group:
        return _train(recipe, run, start, plan, group, tokenizer, make_sampler)


def _train_codec(recipe: Recipe, run: Path, start: Path | None) -> TrainResult:
    from muomni.train.codec.trainer import train_codec

    trainer, memory = train_codec(recipe, run, start, RECIPE)
    write_atomic(run / MEMORY, json.dumps(memory.as_dict(), indent=2) + "\n")
    plot = plot_losses(run, "spectral distance") if trainer.progress.applied else None
    return TrainResult(run, trainer.progress, trainer.total_steps, trainer.stopped, plot, memory)


def _train(
    recipe: Recipe,
    run: Path,
    start: Path | None,
    plan: Plan,
    group: Group,
    tokenizer: Tokenizer | None,
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None,
) -> TrainResult:
    if tokenizer is None:
        tokenizer = group.from_main(lambda: find_tokenizer(recipe, start))
    with open_rows(recipe, tokenizer, plan, group) as read:
        return _train_on(read, tokenizer, recipe, run, start, plan, group, make_sampler)


def _train_on(
    read: Read,
    tokenizer: Tokenizer,
    recipe: Recipe,
    run: Path,
    start: Path | None,
    plan: Plan,
    group: Group,
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None,
) -> TrainResult:
    data, config = read.rows, read.config
    total_steps = count_steps(recipe, data.train)
    model, step = build(recipe, config, plan, group, total_steps)
    progress = Progress()
    if start is not None:
        progress = load_checkpoint(start, model, step.optimizers, group)
        if progress.applied >= total_steps:
            raise UserError(f"{run} is complete: it has taken all of its {total_steps} steps")
        step.counters.applied.fill_(progress.applied)
        step.counters.skipped.fill_(progress.skipped)
        step.counters.streak.fill_(progress.streak)
        step.scaler.load_state_dict(progress.scaler)
    if group.is_main:
        _make_folder(run)
        stored = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
        write_atomic(run / RECIPE, json.dumps(stored, indent=2) + "\n")
        if start is None:
            write_atomic(run / DECLINED, json.dumps(plan.declined) + "\n")
    silent = not group.is_main
    sampler = make_sampler(tokenizer, recipe) if make_sampler is not None else None
    with (
        MetricsLog(run, progress.applied, tensorboard_installed(), silent) as log,
        ProgressLine(total_steps, progress.applied, silent) as line,
    ):
        line.say(_opening(recipe, model, data.train, total_steps, plan.device, start))
        for text in (*plan.lines, *data.notes):
            line.say(text)
        if progress.micro_batch is not None:
            line.say(f"micro-batches of {progress.micro_batch} rows, because memory ran out with more")
        trainer = Trainer(recipe, total_steps, model, tokenizer, step, data.train, data.val, run, progress, sampler)
        _settle_compilation(plan, trainer, log, line)
        trainer.train(log, line)
    memory = trainer.monitor.report()
    plot = None
    if group.is_main:
        decided = {"precision": plan.precision.name, "allocator": plan.allocator.mode}
        as_run = recipe.replace(compile=progress.compile or "off", **decided)
        expected = beside(as_run, config, memory, group.size)
        remember_error(plan.device, expected)
        write_atomic(run / MEMORY, json.dumps({**memory.as_dict(), "forecast": expected}, indent=2) + "\n")
        plot = plot_losses(run) if progress.applied else None
    return TrainResult(run, progress, total_steps, trainer.stopped, plot, memory, group.is_main)


def _settle_compilation(plan: Plan, trainer: Trainer, log: MetricsLog, line: ProgressLine) -> None:
    """Decides what the plan left to a measurement; a run that goes on takes what it decided when it began."""
    progress, choice = trainer.progress, plan.compile
    if choice.mode == "measure":
        if progress.compile is not None:
            choice = compile_trial.remembered(progress.compile, plan.device)
            compilation.apply(trainer.model, choice)
        else:
            trainer.model.train()
            thinker, what = trainer.model.config.thinker, _compiled_work(plan, trainer)
            earlier = verdicts.load_trial(plan.device, thinker, what)
            passes, one_pass = trainer.passes_left, trainer.try_micro_batch
            choice = compile_trial.measure(trainer.model, one_pass, passes, plan.device, earlier)
            if earlier is None and "compiled_s" in choice.figures:
                verdicts.save_trial(plan.device, thinker, what, choice.figures)
        line.say(f"compile {choice.mode}: {choice.reason}")
        log.write("compile", progress.applied, mode=choice.mode, **choice.figures)
    assert choice.mode != "measure"
    progress.compile = choice.mode


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: the run folder cannot be made: {error.strerror}; --out names another one") from None


def _compiled_work(plan: Plan, trainer: Trainer) -> str:
    """What the time of a pass depends on besides machine and Thinker."""
    recipe = trainer.recipe
    parts = recipe.model_dump(mode="json", include={"data", "model", "losses", "freeze", "batch_size"})
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{digest}, {plan.precision.name}, attention {plan.attention.backend}, checkpointing {plan.checkpointing}"


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


def _opening(
    recipe: Recipe, model: OmniModel, rows: Dataset, total_steps: int, device: torch.device, start: Path | None
) -> str:
    per_step = recipe.batch_size * recipe.gradient_accumulation_steps
    epochs = total_steps * per_step / rows.num_rows
    going_on = f"; going on from {start.name}" if start is not None else ""
    sizes = {name: sum(p.numel() for m in group for p in m.parameters()) for name, group in model.parts.items()}
    parts = "" if len(sizes) == 1 else " (" + ", ".join(f"{n} {size / 1e6:.1f}" for n, size in sizes.items()) + ")"
    frozen = f", frozen: {', '.join(sorted(model.frozen))}" if model.frozen else ""
    what, each = "rows", f" × {recipe.data.seq_len} tokens"
    if not recipe.data.train:
        what, each = "pairs", ""
    elif recipe.data.speech is not None:
        each += f" with {recipe.data.speech.pairs_per_sequence} pairs of text and speech"
    return (
        f"{model.num_parameters() / 1e6:.1f} M parameters{parts}{frozen} on {device}; "
        f"{total_steps} steps of {per_step} {what}{each}, {epochs:.2f} epochs of {rows.num_rows} {what}{going_on}"
    )
