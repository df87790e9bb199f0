"""Evaluation mode for a while, all modules of a model, and what others have changed about them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks


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


# Modules of these packages compute by their weights and attributes alone; others may use anything.
_KNOWN_PACKAGES = ("torch.", "muomni.", "peft.")
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
# Of each tensor so many elements are read.
_SAMPLES = 16


def fingerprint(models: Iterable[nn.Module], *settings: object) -> tuple[object, ...] | None:
    """Differs where modules would compute something else than before, or in another process; None if it is not known.

    Seen are weights that were replaced or written to, modules that were exchanged, and attributes, such as the active
    adapter and the scaling of PEFT's layers. Not known is what hooks, replaced `forward`s, tensor subclasses and
    modules of other packages compute. Writes that torch hides (`.data`, numpy) are seen where they change one of the
    elements that are read of each tensor.

    Args:
        models: in any mode.
        settings: what else must be the same.
    """
    if module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks:  # noqa: SLF001 - torch has no other
        return None
    marks: list[object] = [os.getpid(), *settings]
    tensors: list[Tensor] = []
    try:
        for model in models:
            for module in all_modules(model):
                marks.append(type(module))
                _mark_attributes(module, marks)
                for group in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
                    tensors += [x for x in group.values() if x is not None]
        if any(type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided for x in tensors):
            return None
    except _UnknownError:
        return None
    marks += [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors]  # noqa: SLF001 - counts changes
    return (*marks, *_samples(tensors))


class _UnknownError(Exception):
    """What a module computes cannot be known."""


def _mark_attributes(module: nn.Module, marks: list[object]) -> None:
    fields = module.__dict__
    package = type(module).__module__
    if redirected(module) is not None or not package.startswith(_KNOWN_PACKAGES):
        raise _UnknownError
    described = package.startswith("peft.")
    for name, value in fields.items():
        if name not in _OF_EVERY_MODULE:
            # Configurations and functions of our own modules do not change: they are compared as objects.
            marks.append(_describe(value) if described else value)


def _describe(value: object) -> object:
    """Equal for values that are equal all through, whatever was changed in place."""
    if isinstance(value, (*_PLAIN, Enum)):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_describe, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(_describe, value))
    if isinstance(value, dict):
        return tuple((_describe(key), _describe(each)) for key, each in value.items())
    if isinstance(value, Tensor):
        return value.data_ptr(), 0 if value.is_inference() else value._version  # noqa: SLF001
    raise _UnknownError


@torch.no_grad()
def _samples(tensors: Iterable[Tensor]) -> list[bytes]:
    """A few elements of each tensor, of all of one type and place together."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for x in tensors:
        count = min(x.numel(), _SAMPLES)
        if count and x.is_contiguous():
            # One less than a share of it: rows are seldom as long, so that other columns of each are read.
            step = max(1, x.numel() // count - 1)
            sample = x.as_strided((count,), (step,), x.storage_offset())
            groups.setdefault((x.dtype, x.device), []).append(sample)
    return [torch.cat(group).view(torch.uint8).cpu().numpy().tobytes() for group in groups.values()]


def redirected(module: nn.Module) -> str | None:
    """What is called beside or in the place of a module's own forward pass; None where nothing is."""
    fields = module.__dict__
    if fields["_forward_hooks"] or fields["_forward_pre_hooks"]:
        return "it has hooks"
    return "its forward was replaced" if "forward" in fields else None


def unusual_tensor(module: nn.Module) -> str | None:
    """Which of a module's own weights is more than a dense tensor, such as torchao's; None where none is."""
    for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if type(x) not in (Tensor, nn.Parameter):
            return f"its {name} is a {type(x).__name__}, not a plain tensor"
        if x.layout != torch.strided:
            return f"its {name} is sparse"
    return None
