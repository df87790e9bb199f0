"""`torch.compile` for training, block by block.

All blocks of a model share one compiled code, since they differ in their weights only: compiling one
block costs a fraction of compiling the whole model, and the fused pointwise operations inside it are
what compilation gains. What lies between blocks (embedding, loss in chunks, optimizer) is a few large
operations that would not get faster.

Costs: some 10 to 30 seconds at the first step, less when the compiler's cache on disk knows the code.
"""

import shutil
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from muomni.errors import ConfigError
from muomni.model.layers import Block

Mode = Literal["off", "blocks", "full"]


@dataclass(frozen=True)
class Choice:
    """What is compiled, and why."""

    mode: Mode
    reason: str


def choose(asked: Literal["auto", "off", "blocks", "full"], device: torch.device) -> Choice:
    """`auto` compiles blocks on a GPU that has a compiler, and nothing on a CPU (docs/LOG.md has the figures).

    Raises:
        ConfigError: compilation was named and there is no compiler for the device.
    """
    if asked == "off":
        return Choice("off", "as asked")
    if asked == "auto" and device.type == "cpu":
        return Choice("off", 'on a CPU a few percent seldom pay for compiling; "blocks" turns it on')
    missing = what_is_missing(device)
    if asked != "auto":
        if missing:
            raise ConfigError(f'compile = "{asked}": {missing}; install it or say "off"')
        return Choice(asked, "as asked")
    if missing:
        return Choice("off", missing)
    return Choice("blocks", "a compiler is here")


def apply(model: nn.Module, choice: Choice) -> None:
    """Compiles in place: modules keep their identity and their weights' names."""
    if choice.mode == "blocks":
        for module in model.modules():
            if isinstance(module, Block):
                module.compile()
    elif choice.mode == "full":
        model.compile()


def what_is_missing(device: torch.device) -> str | None:
    """Why Inductor cannot work here; None when it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed"
    if device.type == "cpu":
        from torch._inductor import config

        named = config.cpp.cxx[1]
        found = any(shutil.which(name) for name in ("g++", "clang++", named) if isinstance(name, str))
        return None if found else "no C++ compiler (g++ or clang++) is on the path"
    return f"torch.compile is not used on {device.type}"
