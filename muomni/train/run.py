"""A stage from its recipe: data, tokenizer, model, optimizer, then the loop."""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from muomni.accel import compile as compilation
from muomni.accel import compile_trial
from muomni.accel.memory import MemoryReport
from muomni.accel.parallel import Group, connect
from muomni.accel.plan import Plan, make_plan
from muomni.config import OmniConfig, Recipe, parse, read_json
from muomni.data import (
    Prefetched,
    PreparedRows,
    Rows,
    SpeechRows,
    Tokenizer,
    WithSpeech,
    prepare_rows,
    prepare_tokenizer,
)
from muomni.errors import ConfigError, UserError
from muomni.files import write_atomic
from muomni.model import OmniModel
from muomni.model.folder import resolve_folder
from muomni.train.checkpoint import Progress, load_checkpoint
from muomni.train.forecast import beside
from muomni.train.initial import check_model, initial_config, initial_model
from muomni.train.loop import Sampler, Trainer
from muomni.train.metrics import MetricsLog, plot_losses, tensorboard_installed
from muomni.train.optimizer import build_optimizers, check_optimizer
from muomni.train.progress import ProgressLine
from muomni.train.schedule import lr_factors
from muomni.train.speech import Speech, prepare_speech
from muomni.train.step import TrainStep

ResultT = TypeVar("ResultT")
RECIPE = "recipe.json"
MEMORY = "memory.json"
# Between the seeds of two processes, so that neighbouring recipe seeds share no process's random numbers.
_RANK_SEEDS = 0x9E3779B97F4A7C15
# What may differ between a run and its resumption: nothing that changes what is computed. With `on_oom`
# that is so until memory runs out, where the other choice is the end of the run.
# Another number of processes, or another way to share the work, changes rounding and what dropout draws.
_MAY_CHANGE = {"schema_", "name", "log_every", "checkpoint", "eval", "on_oom", "allocator", "parallel"}


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
    if recipe.codec is not None:
        return _train_codec(recipe, run, start)
    check_model(recipe)
    plan = make_plan(recipe)
    check_optimizer(recipe.optimizer, plan.precision)
    plan.begin()
    with connect(plan.parallel, plan.device) as group:
        return _train(recipe, run, start, plan, group, make_sampler)


def _train_codec(recipe: Recipe, run: Path, start: Path | None) -> TrainResult:
    from muomni.train.codec import train_codec

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
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None,
) -> TrainResult:
    tokenizer = group.from_main(lambda: _tokenizer(recipe, start))
    speech = _on_each_machine(group, partial(prepare_speech, recipe, plan.device)) if recipe.data.speech else None
    config = initial_config(recipe, tokenizer, () if speech is None else speech.voices)
    data = _data(recipe, tokenizer, config, group, speech)
    with ExitStack() as threads:
        inner = data.train.rows if isinstance(data.train, WithSpeech) else data.train
        if isinstance(inner, Prefetched):
            threads.enter_context(inner)
        return _train_on(data, config, tokenizer, recipe, run, start, plan, group, make_sampler)


def _train_on(
    data: PreparedRows,
    config: OmniConfig,
    tokenizer: Tokenizer,
    recipe: Recipe,
    run: Path,
    start: Path | None,
    plan: Plan,
    group: Group,
    make_sampler: Callable[[Tokenizer, Recipe], Sampler] | None,
) -> TrainResult:
    total_steps = _total_steps(recipe, data.train)
    torch.manual_seed((recipe.seed + group.rank * _RANK_SEEDS) % 2**63)
    model = initial_model(recipe, config)
    model.freeze(recipe.freeze)
    if group.kind != "fsdp":
        model = model.to(plan.device)
    called = plan.apply(model, group)
    optimizers = build_optimizers(model, recipe.optimizer, plan.precision)
    factors = lr_factors(recipe.schedule, total_steps)
    step = TrainStep(
        called, optimizers, factors, recipe.max_grad_norm, plan.precision, group, recipe.losses.model_dump()
    )
    progress = Progress()
    if start is not None:
        progress = load_checkpoint(start, model, optimizers, group)
        if progress.applied >= total_steps:
            raise UserError(f"{run} is complete: it has taken all of its {total_steps} steps")
        step.counters.applied.fill_(progress.applied)
        step.counters.skipped.fill_(progress.skipped)
        step.counters.streak.fill_(progress.streak)
        step.scaler.load_state_dict(progress.scaler)
    if group.is_main:
        run.mkdir(parents=True, exist_ok=True)
        stored = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
        write_atomic(run / RECIPE, json.dumps(stored, indent=2) + "\n")
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
        expected = beside(recipe, config, memory, group.size)
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
            choice = compile_trial.measure(trainer.model, trainer.try_micro_batch, trainer.passes_left, plan.device)
        line.say(f"compile {choice.mode}: {choice.reason}")
        log.write("compile", progress.applied, mode=choice.mode, **choice.figures)
    assert choice.mode != "measure"
    progress.compile = choice.mode


def _data(
    recipe: Recipe, tokenizer: Tokenizer, config: OmniConfig, group: Group, speech: Speech | None
) -> PreparedRows:
    """The rows: of text and media, of pairs of text and speech, or both."""
    if recipe.data.train:
        prepare = partial(prepare_rows, recipe.data, tokenizer, config, recipe.seed)
        data = _on_each_machine(group, lambda progress: prepare(progress=progress))
        if speech is None:
            return data
    assert speech is not None and recipe.data.speech is not None and config.talker is not None
    spoken = SpeechRows(speech.train, tokenizer, config.talker, recipe.seed, shuffle=recipe.data.shuffle)
    held_out = SpeechRows(speech.val, tokenizer, config.talker, recipe.seed, shuffle=False)
    if not recipe.data.train:
        return PreparedRows(spoken, held_out, speech.notes)
    count = recipe.data.speech.per_row
    return PreparedRows(
        WithSpeech(data.train, spoken, count), WithSpeech(data.val, held_out, count), (*data.notes, *speech.notes)
    )


def _on_each_machine(group: Group, prepare: Callable[[bool], ResultT]) -> ResultT:
    """What `prepare` gives; its caches are built by one process of each machine and then opened by the others.

    Args:
        group: all of them.
        prepare: called with whether to show progress.
    """
    if group.local_rank == 0:
        result = prepare(group.is_main)
    group.wait()
    if group.local_rank != 0:
        result = prepare(False)
    return result


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
    if (run / RECIPE).is_file():
        _check_same(recipe, parse(Recipe, read_json(run / RECIPE), str(run / RECIPE)), run)
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
    return values | {"data": {k: v for k, v in values["data"].items() if k not in ("workers", "max_bad")}}


def _tokenizer(recipe: Recipe, start: Path | None) -> Tokenizer:
    if start is not None:
        return Tokenizer.load(start)
    if recipe.model.init_from is not None:
        return Tokenizer.load(resolve_folder(Path(recipe.model.init_from)))
    return prepare_tokenizer(recipe.tokenizer, recipe.data)


def _total_steps(recipe: Recipe, rows: Rows) -> int:
    if recipe.max_steps is not None:
        return recipe.max_steps
    assert recipe.epochs is not None  # the recipe checks that one of the two is there
    per_step = recipe.batch_size * recipe.gradient_accumulation_steps
    return max(1, math.ceil(recipe.epochs * rows.num_rows / per_step))


def _opening(
    recipe: Recipe, model: OmniModel, rows: Rows, total_steps: int, device: torch.device, start: Path | None
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
        each += f" with {recipe.data.speech.per_row} pairs of text and speech"
    return (
        f"{model.num_parameters() / 1e6:.1f} M parameters{parts}{frozen} on {device}; "
        f"{total_steps} steps of {per_step} {what}{each}, {epochs:.2f} epochs of {rows.num_rows} {what}{going_on}"
    )
