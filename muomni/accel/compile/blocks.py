"""`torch.compile` for training, block by block.

All blocks of a model share one compiled code, since they differ in their weights only: compiling one
block costs a fraction of compiling the whole model, and the fused pointwise operations inside it are
what compilation gains. What lies between blocks (embedding, loss in chunks, optimizer) is a few large
operations that would not get faster.

Costs: some 10 to 30 seconds at the first step, less when the compiler's cache on disk knows the code.
"""

import shutil
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from muomni.errors import ConfigError
from muomni.model.encoders.layers import BLOCKS

Mode = Literal["off", "blocks", "full"]


@dataclass(frozen=True)
class CompileChoice:
    """What is compiled, and why.

    Attributes:
        mode: what; `measure` leaves it to `accel.compile.trial`, when model and rows are there.
        reason: for the log.
        figures: what was measured, for `metrics.jsonl`.
    """

    mode: Mode | Literal["measure"]
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def choose(asked: Literal["auto", "off", "blocks", "full"], device: torch.device, processes: int = 1) -> CompileChoice:
    """`auto` leaves it to a measurement where there is a compiler.

    Several processes are not measured, since they would have to agree: `auto` then compiles blocks on GPUs
    and nothing on CPUs.

    Raises:
        ConfigError: compilation was named and there is no compiler for the device.
    """
    if asked == "off":
        return CompileChoice("off", "as asked")
    missing = what_is_missing(device)
    if asked != "auto":
        if missing:
            raise ConfigError(f'compile = "{asked}": {missing}; install it or say "off"')
        return CompileChoice(asked, "as asked")
    if missing:
        return CompileChoice("off", missing)
    if processes == 1:
        return CompileChoice("measure", "a compiler is here; whether it pays is measured first")
    why = "is not measured with several processes"
    return (
        CompileChoice("blocks", f"a compiler is here; it {why}")
        if device.type == "cuda"
        else CompileChoice("off", f"it {why}")
    )


def apply(model: nn.Module, choice: CompileChoice) -> None:
    """Compiles in place: modules keep their identity and their weights' names. What is to be measured stays eager."""
    if choice.mode == "blocks":
        for module in model.modules():
            if isinstance(module, BLOCKS):
                module.compile()
    elif choice.mode == "full":
        model.compile()


def undo(model: nn.Module) -> None:
    """Back to eager, whatever `apply` compiled."""
    for module in model.modules():
        module._compiled_call_impl = None  # noqa: SLF001 - what `nn.Module.compile` sets


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
