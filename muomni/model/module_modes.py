"""Evaluation mode for a while, and all modules of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
