"""Whether a model is still what its configuration makes: only then may it be saved, and a native step compute it."""

from collections.abc import Iterator

import torch
from torch import nn

from muomni.config import OmniConfig
from muomni.errors import UserError
from muomni.model.int8_layers import to_int8
from muomni.model.module_modes import unusual_tensor
from muomni.model.omni import OmniModel

_REMEDY = (
    "merge adapters first (PEFT: merge_and_unload(); its own save_pretrained saves them alone), "
    "undo what other libraries changed, or give the model a configuration that says what it is"
)


def checked_config(model: OmniModel) -> OmniConfig:
    """The configuration that makes this model: its own, but for `tie_word_embeddings`, which the tensors decide.

    Raises:
        UserError: a model of that configuration has other modules or weights, so that files of this one could not be
            loaded or would compute something else; names the first.
    """
    tied = model.thinker.is_tied
    config = model.config
    if tied != config.thinker.tie_word_embeddings:
        config = config.replace(thinker=config.thinker.replace(tie_word_embeddings=tied))
    with torch.device("meta"):
        expected = type(model)(config)
    if model.is_quantized:
        to_int8(expected)
    problem = next(differences(model, expected), None)
    if problem is not None:
        raise UserError(f"this model cannot be saved, it is not what its configuration says: {problem}; {_REMEDY}")
    return config


def differences(model: nn.Module, expected: nn.Module) -> Iterator[str]:
    """Where the modules and weights of a model are not those of another: types, sizes, and how weights are stored.

    Values, element types and the type of the outermost module may differ.
    """
    wanted = dict(expected.named_modules(remove_duplicate=False))
    present = dict(model.named_modules(remove_duplicate=False))
    for name, module in present.items():
        if name not in wanted:
            yield f"{name} is a {type(module).__name__} too many"
        elif name and _described(module) != _described(wanted[name]):
            yield f"{name} is {_described(module)}, not {_described(wanted[name])}"
        elif (shapes := _shapes(module)) != (right := _shapes(wanted[name])):
            yield f"{name} has weights {shapes}, not {right}"
        elif (fault := unusual_tensor(module)) is not None:
            yield f"{name}: {fault}"
    yield from (f"{name} is missing" for name in wanted if name not in present)


def _described(module: nn.Module) -> str:
    return f"{type(module).__module__.removeprefix('torch.nn.modules.')}.{type(module).__name__}({module.extra_repr()})"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in own}
