"""The optimizations of training, in the one order in which they are applied to a model.

0. the allocator is told to keep freed memory, before there is any;
1. attention gets its function, so that whatever wraps it later wraps that one;
2. recomputation wraps blocks, so that it is inside what is compiled;
3. compilation comes over whatever the blocks are by then;
4. DDP or FSDP2 comes last: it sends gradients and gathers weights around what runs on one device.

Precision is no transformation of the model: it is the context of a forward pass, see `precision`.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from muomni.accel import activation_checkpointing, attention_backend, distributed
from muomni.accel.compile import blocks as compilation
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.device import pick_device
from muomni.accel.measurements import verdicts
from muomni.accel.measurements.verdicts import NOTHING, Verdicts
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.config.model import OmniConfig
from muomni.config.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What was decided for a run, before anything is allocated; `lines` says it in words, for the log.

    `declined` holds the settings of which an `auto` took something else because of what was measured here, with what
    it took: a run that goes on names these, whatever was measured since.
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

    def begin(self) -> None:
        """Prepares the process, before anything is allocated.

        Raises:
            ConfigError: the C library does not do what was asked of it.
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


def make_plan(recipe: Recipe, config: OmniConfig, found: Verdicts = NOTHING) -> Plan:
    """Decides device, precision, attention, checkpointing, compilation and how several processes share the work.

    Args:
        recipe: what it names is obeyed; its `auto`s are decided here.
        config: sizes of the model; attention has to take all of its head sizes.
        found: what was measured to lose on this machine with this model, which no `auto` takes; not heeded where
            several processes share the run.

    Raises:
        ConfigError: something the recipe names does not work on this machine.
    """
    device = pick_device(recipe.device)
    several = distributed.choose(recipe, device)
    device = several.take_device(device)
    # Several processes have to decide alike, and may be on machines that measured different things.
    settled, why = without_losers(recipe, device, found if several.size == 1 else NOTHING)
    declined = {name: getattr(settled, name) for name in why}
    recipe = settled
    precision = pick_precision(recipe.precision, device)
    checkpointing = None if recipe.gradient_checkpointing == "off" else recipe.gradient_checkpointing
    plan = Plan(
        device,
        allocator.choose(recipe.allocator, device),
        precision,
        attention_backend.pick_attention(recipe.attention, device, precision.dtype, *config.head_dims),
        checkpointing,
        compilation.choose(recipe.compile, device, several.size),
        several,
        declined,
    )
    # Not asked for by the user: the log says what was measured.
    return replace(plan, **{name: replace(getattr(plan, name), reason=reason) for name, reason in why.items()})


def without_losers(recipe: Recipe, device: torch.device, found: Verdicts) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every `auto` that would take what was measured to lose replaced by what it is to take.

    Returns:
        The recipe, and by name of the setting why it was replaced.
    """
    taken: dict[str, str] = {}
    why: dict[str, str] = {}

    def decline(setting: str, key: str, name: str, instead: str) -> None:
        reason = found.loss(key, name)
        if getattr(recipe, setting) == "auto" and reason is not None:
            taken[setting], why[setting] = instead, reason

    decline("allocator", verdicts.POOL, "a pool for large tensors", "retain")
    decline("allocator", verdicts.ALLOCATOR, "keeping freed memory", "system")
    decline("compile", verdicts.COMPILE, "compiling the blocks", "off")
    if recipe.precision == "auto":
        name = pick_precision("auto", device).name
        if name != "fp32":
            decline("precision", verdicts.BF16 if name == "bf16" else verdicts.FP16, name, "fp32")
    if device.type == "cuda":
        decline("attention", verdicts.VARLEN, "varlen attention", "sdpa")
    return recipe.replace(**taken) if taken else recipe, why
