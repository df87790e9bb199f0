"""The optimizations of training, in the one order in which they are applied to a model.

1. recomputation wraps blocks, so that it is inside what is compiled;
2. compilation comes last, over whatever the blocks are by then.

Precision is no transformation of the model: it is the context of a forward pass, see `precision`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from muomni.accel import compile as compilation
from muomni.accel import recompute
from muomni.accel.device import pick_device
from muomni.accel.precision import Precision, pick_precision
from muomni.config.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What was decided for a run, before anything is allocated; `lines` says it in words, for the log."""

    device: torch.device
    precision: Precision
    checkpointing: recompute.Mode | None
    compile: compilation.Choice

    @property
    def lines(self) -> list[str]:
        return [
            f"device {self.device}; precision {self.precision.name}: {self.precision.reason}",
            f"gradient checkpointing {self.checkpointing or 'off'}; compile {self.compile.mode}: {self.compile.reason}",
        ]

    def apply(self, model: nn.Module) -> None:
        """Transforms the model in place."""
        if self.checkpointing is not None:
            recompute.enable(model, self.checkpointing)
        compilation.apply(model, self.compile)


def make_plan(recipe: Recipe) -> Plan:
    """Decides device, precision, checkpointing and compilation.

    Raises:
        ConfigError: something the recipe names does not work on this machine.
    """
    device = pick_device(recipe.device)
    checkpointing = None if recipe.gradient_checkpointing == "off" else recipe.gradient_checkpointing
    return Plan(
        device,
        pick_precision(recipe.precision, device),
        checkpointing,
        compilation.choose(recipe.compile, device),
    )
