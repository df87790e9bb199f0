"""The optimizations of training, in the one order in which they are applied to a model.

0. the CPU allocator is chosen before any memory is allocated;
1. attention layers get their function, so that later wrappers wrap that one;
2. activation checkpointing wraps blocks, so that it is inside what is compiled;
3. compilation takes the blocks as they are by then;
4. DDP or FSDP2 comes last: it sends gradients and gathers weights around what runs on one device.

Precision does not transform the model: it is the context of a forward pass, see `mixed_precision`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from muomni.accel import activation_checkpointing, attention_backend, distributed
from muomni.accel.compile import blocks as compilation
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.device import pick_device
from muomni.accel.measurements.verdicts import NOTHING, Verdicts
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.accel.step_config import StepConfig
from muomni.accel.technique import TECHNIQUES, Technique, measured_by
from muomni.config.model import OmniConfig
from muomni.config.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What was decided for a run, before anything is allocated; `lines` is for the log.

    `declined` holds, by name of the setting, what an `auto` took instead of a technique that lost here: a resumed run
    takes the same, whatever was measured since.
    """

    device: torch.device
    allocator: allocator.AllocatorChoice
    precision: Precision
    attention: attention_backend.AttentionChoice
    checkpointing: activation_checkpointing.Mode | None
    compile: compilation.CompileChoice
    parallel: distributed.ParallelChoice
    declined: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The plan for the log, a line for each part with its reason."""
        share = f"{self.parallel.kind}, {self.parallel.size} processes"
        threads = f", {torch.get_num_threads()} CPU threads each" if self.device.type == "cpu" else ""
        several = [f"parallel {share}{threads}: {self.parallel.reason}"] if self.parallel.size > 1 else []
        return [
            *several,
            f"device {self.device}; precision {self.precision.name}: {self.precision.reason}",
            f"memory: {self.allocator.words}",
            f"attention {self.attention.backend}: {self.attention.reason}",
            f"gradient checkpointing {self.checkpointing or 'off'}; compile {self.compile.mode}: {self.compile.reason}",
        ]

    def step(self, asked: StepConfig) -> StepConfig:
        """A step configuration with what was decided in the place of every `auto`."""
        return asked.replace(
            attention=self.attention.backend,
            precision=self.precision.name,
            allocator=self.allocator.mode,
            compile="off" if self.compile.mode == "measure" else self.compile.mode,
        )

    def begin(self) -> None:
        """Prepares the process, before anything is allocated.

        Raises:
            ConfigError: the C library refuses the allocator's settings.
        """
        allocator.apply(self.allocator)

    def apply(self, model: nn.Module, group: distributed.Group) -> nn.Module:
        """Transforms the model in place; together with the other processes of `group`.

        Returns:
            The module to call in training: `model` itself, or what DDP put around it.
        """
        attention_backend.apply(model, self.attention)
        if self.checkpointing is not None:
            activation_checkpointing.enable(model, self.checkpointing)
        compilation.apply(model, self.compile)
        return group.apply(model, self.device)


def make_plan(recipe: Recipe, config: OmniConfig, known: Verdicts = NOTHING) -> Plan:
    """Decides device, precision, attention, checkpointing, compilation and how several processes share the work.

    Args:
        recipe: what it names is obeyed; its `auto`s are decided here.
        config: sizes of the model; the attention backend must support all of its head sizes.
        known: benchmark verdicts for this machine and model. Not used where several processes share the run: they must
            decide alike, and may be on machines that measured different things.

    Raises:
        ConfigError: something the recipe names does not work on this machine.
    """
    device = pick_device(recipe.device)
    shrinks = recipe.on_oom == "shrink_micro_batch"
    parallel = distributed.choose(recipe.parallel, device, StepConfig.of(recipe), shrinks=shrinks)
    device = parallel.take_device(device)
    recipe, reasons = without_losers(recipe, device, known if parallel.size == 1 else NOTHING)
    precision = pick_precision(recipe.precision, device)
    plan = Plan(
        device,
        allocator.choose(recipe.allocator, device),
        precision,
        attention_backend.pick_attention(recipe.attention, device, precision.dtype, *config.head_dims),
        None if recipe.gradient_checkpointing == "off" else recipe.gradient_checkpointing,
        compilation.choose(recipe.compile, device, parallel.size),
        parallel,
        {name: getattr(recipe, name) for name in reasons},
    )
    # The user did not ask for these: the log says what was measured.
    return replace(plan, **{name: replace(getattr(plan, name), reason=reason) for name, reason in reasons.items()})


def without_losers(
    recipe: Recipe, device: torch.device, known: Verdicts, techniques: Sequence[Technique] = TECHNIQUES
) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every `auto` that would take a technique that lost here set to what it takes instead.

    Returns:
        The recipe, and the reason by name of each setting that was replaced.
    """
    # What these settings' `auto` takes depends on the device; of the others any technique may be taken.
    usual = {
        "precision": pick_precision("auto", device).name,
        "attention": "varlen" if device.type == "cuda" else "sdpa",
    }
    settings = (t.setting.name for t in measured_by("training step", techniques) if t.setting is not None)
    declined = {
        name: choice
        for name in dict.fromkeys(settings)
        if getattr(recipe, name) == "auto" and (choice := known.declined(name, usual.get(name), techniques)) is not None
    }
    taken = {name: choice.instead for name, choice in declined.items()}
    return recipe.replace(**taken) if taken else recipe, {name: choice.reason for name, choice in declined.items()}
