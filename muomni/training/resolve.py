"""A recipe resolved, once, before anything is allocated: what it leaves open, folders and this machine decide."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.accel.cpu_allocator.choice import AllocatorChoice
from muomni.accel.cpu_allocator.choice import choose as choose_allocator
from muomni.accel.device import pick_device
from muomni.accel.distributed import choose as choose_parallel
from muomni.accel.execution_plan import Plan, make_plan
from muomni.accel.measurements.verdicts import load_verdicts
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.accel.step_config import StepConfig
from muomni.config import DataSpec, Recipe, TokenizerSpec, read_json
from muomni.config.codec import CodecSpec
from muomni.config.recipe import CheckpointSpec, EvalSpec, LossSpec, OptimizerSpec, ScheduleSpec
from muomni.errors import ConfigError
from muomni.training.resolve_model import ResolvedModel, resolve_model

DECLINED = "declined.json"


@dataclass(frozen=True)
class Optimization:
    """How the weights are learnt.

    Attributes:
        optimizer, schedule, max_grad_norm: as in a recipe.
        max_steps, epochs: one of the two, the length of the run.
        rows: of a step, over all processes.
    """

    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    max_grad_norm: float
    max_steps: int | None
    epochs: float | None
    rows: int

    def num_steps(self, rows: int) -> int:
        """Optimizer steps of the run, with so many training rows.

        Raises:
            ConfigError: the warm-up is longer.
        """
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None  # a recipe gives one of the two
        steps = max(1, math.ceil(self.epochs * rows / self.rows))
        if self.schedule.warmup_steps > steps:
            raise ConfigError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps}: the run has {steps} steps ({rows} rows, "
                f"epochs = {self.epochs:g}), and the learning rate would never get up: set it to {steps} or less"
            )
        return steps


@dataclass(frozen=True)
class ResolvedRun:
    """A run before anything is allocated: every decision that needs no data, each part for those who use it.

    Attributes:
        step: how a step is computed, without any `auto`; what is left to a measurement is not compiled.
        optim: how the weights are learnt, and for how long.
        data, eval, checkpoint, log_every, seed: as in a recipe.
    """

    step: StepConfig
    optim: Optimization
    data: DataSpec
    eval: EvalSpec
    checkpoint: CheckpointSpec
    log_every: int
    seed: int


@dataclass(frozen=True)
class ModelRun(ResolvedRun):
    """Of a model.

    Attributes:
        model: its sizes, and whose weights it begins with.
        plan: device, precision and the other optimizations, with reasons: what every `auto` became.
        tokenizer, losses, freeze: as in a recipe.
        shrinks: whether a step that runs out of memory is taken again in smaller micro-batches.
    """

    model: ResolvedModel
    plan: Plan
    tokenizer: TokenizerSpec
    losses: LossSpec
    freeze: tuple[str, ...]
    shrinks: bool


@dataclass(frozen=True)
class CodecRun(ResolvedRun):
    """Of a speech codec.

    Attributes:
        codec: as in a recipe.
        precision: of the forward passes, and their device.
        allocator: of the CPU's memory.
    """

    codec: CodecSpec
    precision: Precision
    allocator: AllocatorChoice


def resolve(recipe: Recipe, run: Path | None = None) -> ModelRun:
    """Decides what a recipe of a model leaves open.

    Args:
        recipe: of a model, not of a codec.
        run: the folder of a run that is resumed: it declines what it declined when it began. Otherwise what was
            measured to lose with this model here is declined, see `make_plan`.

    Raises:
        ConfigError: something that the recipe names does not work here, or its parts do not go together.
        UserError: a folder that the recipe names holds no model or codec.
    """
    model = resolve_model(recipe)
    if run is None:
        device = pick_device(recipe.device)
        plan = make_plan(recipe, model.config, load_verdicts(device, model.config.thinker))
    else:
        path = run / DECLINED
        as_begun = recipe.replace(**read_json(path)) if path.is_file() else recipe
        plan = make_plan(as_begun, model.config)
    return ModelRun(
        **_parts(recipe, plan.step(StepConfig.of(recipe))),
        model=model,
        plan=plan,
        tokenizer=recipe.tokenizer,
        losses=recipe.losses,
        freeze=recipe.freeze,
        shrinks=recipe.on_oom == "shrink_micro_batch",
    )


def resolve_codec(recipe: Recipe) -> CodecRun:
    """Decides what a recipe of a codec leaves open.

    Raises:
        ConfigError: something that the recipe names does not work here, or several processes were started.
    """
    assert recipe.codec is not None
    device = pick_device(recipe.device)
    step = StepConfig.of(recipe)
    if choose_parallel(recipe.parallel, device, step, shrinks=False).size > 1:
        raise ConfigError("codec: one process trains a codec; start it without torchrun")
    allocator, precision = choose_allocator(recipe.allocator, device), pick_precision(recipe.precision, device)
    step = step.replace(allocator=allocator.mode, precision=precision.name)
    return CodecRun(**_parts(recipe, step), codec=recipe.codec, precision=precision, allocator=allocator)


def _parts(recipe: Recipe, step: StepConfig) -> Mapping[str, Any]:
    """What every `ResolvedRun` has."""
    names = ("data", "eval", "checkpoint", "log_every", "seed")
    optim = Optimization(
        recipe.optimizer, recipe.schedule, recipe.max_grad_norm, recipe.max_steps, recipe.epochs, step.rows
    )
    return {"step": step, "optim": optim, **{name: getattr(recipe, name) for name in names}}
