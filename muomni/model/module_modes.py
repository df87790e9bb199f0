"""Evaluation mode for a while, all modules of a model, and what others have changed about them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is as it was."""
    training = [module for module in all_modules(model) if module.training]
    if training:  # going through a model with torch's own functions takes as long as a step of a small one
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def all_modules(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives, in another order and in a tenth of the time: calls go through them each time."""
    seen = {model: None}
    for module in (found := [model]):
        for child in module.__dict__["_modules"].values():
            if child is not None and child not in seen:
                seen[child] = None
                found.append(child)
    return found


def fingerprint(model: nn.Module) -> tuple[object, ...]:
    """Changes when a weight is replaced or written to in place, or a module is: what an engine was made for is gone.

    Not seen are writes through `.data`, which torch hides.
    """
    marks: list[object] = []
    for module in all_modules(model):
        fields = module.__dict__
        # Hooks and a `forward` of its own are what some runners do not call.
        hooked = bool(fields["_forward_hooks"] or fields["_forward_pre_hooks"] or "forward" in fields)
        marks += (type(module), hooked)
        for tensors in (fields["_parameters"], fields["_buffers"]):
            for x in tensors.values():
                if x is not None:
                    marks += (x.data_ptr(), 0 if x.is_inference() else x._version)
    return tuple(marks)


def redirected(module: nn.Module) -> str | None:
    """What is called beside or in the place of a module's own forward pass; None where nothing is."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    return "its forward was replaced" if "forward" in module.__dict__ else None


def unusual_tensor(module: nn.Module) -> str | None:
    """Which of a module's own weights is more than a dense tensor, such as torchao's; None where none is."""
    for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if type(x) not in (Tensor, nn.Parameter):
            return f"its {name} is a {type(x).__name__}, not a plain tensor"
        if x.layout != torch.strided:
            return f"its {name} is sparse"
    return None
