"""The optimizations of training, in the one order in which they are applied to a model.

0. the allocator is told to keep freed memory, before there is any;
1. attention gets its function, so that whatever wraps it later wraps that one;
2. recomputation wraps blocks, so that it is inside what is compiled;
3. compilation comes over whatever the blocks are by then;
4. DDP or FSDP2 comes last: it sends gradients and gathers weights around what runs on one device.

Precision is no transformation of the model: it is the context of a forward pass, see `precision`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from muomni.accel import allocator, attention, measured, recompute
from muomni.accel import compile as compilation
from muomni.accel import parallel as processes
from muomni.accel.device import pick_device
from muomni.accel.measured import NOTHING, Findings
from muomni.accel.precision import Precision, pick_precision
from muomni.config.recipe import Recipe
from muomni.config.talker import TalkerConfig
from muomni.model.folder import read_config, resolve_folder
from muomni.model.towers import read_siglip, read_whisper


@dataclass(frozen=True)
class Plan:
    """What was decided for a run, before anything is allocated; `lines` says it in words, for the log.

    `declined` holds the settings of which an `auto` took something else because of what was measured here, with what
    it took: a run that goes on names these, whatever was measured since.
    """

    device: torch.device
    allocator: allocator.Choice
    precision: Precision
    attention: attention.Choice
    checkpointing: recompute.Mode | None
    compile: compilation.Choice
    parallel: processes.Choice
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

    def apply(self, model: nn.Module, group: processes.Group) -> nn.Module:
        """Transforms the model in place; together with the other processes of `group`.

        Returns:
            The module to call in training: `model` itself, or what DDP put around it.
        """
        attention.apply(model, self.attention)
        if self.checkpointing is not None:
            recompute.enable(model, self.checkpointing)
        compilation.apply(model, self.compile)
        return group.apply(model, self.device)


def make_plan(recipe: Recipe, found: Findings = NOTHING) -> Plan:
    """Decides device, precision, attention, checkpointing, compilation and how several processes share the work.

    Args:
        recipe: what it names is obeyed; its `auto`s are decided here.
        found: what was measured to lose on this machine with this model, which no `auto` takes; not heeded where
            several processes share the run.

    Raises:
        ConfigError: something the recipe names does not work on this machine.
        UserError: `model.init_from` holds no model.
    """
    device = pick_device(recipe.device)
    several = processes.choose(recipe, device)
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
        attention.pick_attention(recipe.attention, device, precision.dtype, *_head_dims(recipe)),
        checkpointing,
        compilation.choose(recipe.compile, device, several.size),
        several,
        declined,
    )
    # Not asked for by the user: the log says what was measured.
    return replace(plan, **{name: replace(getattr(plan, name), reason=reason) for name, reason in why.items()})


def without_losers(recipe: Recipe, device: torch.device, found: Findings) -> tuple[Recipe, dict[str, str]]:
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

    decline("allocator", measured.POOL, "a pool for large tensors", "keep")
    decline("allocator", measured.ALLOCATOR, "keeping freed memory", "system")
    decline("compile", measured.COMPILE, "compiling the blocks", "off")
    if recipe.precision == "auto":
        name = pick_precision("auto", device).name
        if name != "fp32":
            decline("precision", measured.BF16 if name == "bf16" else measured.FP16, name, "fp32")
    if device.type == "cuda":
        decline("attention", measured.VARLEN, "varlen attention", "sdpa")
    return recipe.replace(**taken) if taken else recipe, why


def _head_dims(recipe: Recipe) -> tuple[int, ...]:
    """The Thinker's head size, then those of the encoders and the Talker."""
    spec = recipe.model
    if spec.init_from is None:
        config = spec.build()
    else:
        config, _ = read_config(resolve_folder(Path(spec.init_from)))
    vision, audio = config.vision or spec.new_vision(), config.audio or spec.new_audio()
    if vision is None and spec.vision is not None and spec.vision.from_ is not None:
        vision = read_siglip(Path(spec.vision.from_))
    if audio is None and spec.audio is not None and spec.audio.from_ is not None:
        audio = read_whisper(Path(spec.audio.from_))
    sizes = [encoder.head_dim for encoder in (vision, audio) if encoder is not None]
    if config.talker is not None:
        sizes.append(config.talker.head_dim)
    elif spec.talker is not None:
        sizes.append(spec.talker.head_dim or TalkerConfig.model_fields["head_dim"].default)
    return config.thinker.head_dim, *sizes
