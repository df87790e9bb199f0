"""Which parts of a model learn."""

from collections.abc import Iterable, Sequence

from torch import nn

from muomni.errors import UserError
from muomni.model import OmniModel


def parts_of(model: OmniModel) -> dict[str, tuple[nn.Module, ...]]:
    """The parts of the model that can be frozen.

    They are `thinker`, `vision`, `vision_projector`, `audio`, `audio_projector` and `talker`, if the
    model has it. A head belongs to the encoder that it teaches.
    """
    modules = {
        "thinker": (model.thinker,),
        "vision": (model.vision, model.vision_head),
        "vision_projector": (model.vision_projector,),
        "audio": (model.audio, model.audio_head),
        "audio_projector": (model.audio_projector,),
        "talker": (model.talker,),
    }
    present = {name: tuple(m for m in group if m is not None) for name, group in modules.items()}
    return {name: group for name, group in present.items() if group}


def freeze(model: OmniModel, parts: Iterable[str], losses: Iterable[str] | None = None) -> None:
    """Makes exactly these parts not learn: no gradients, and evaluation mode (see `LossModule.train`).

    Args:
        model: changed in place.
        parts: of `parts_of`.
        losses: names of those that have a weight; a head that none of them reaches is frozen too. None: all
            heads learn.

    Raises:
        UserError: the model has no such part.
    """
    wanted, present = frozenset(parts), parts_of(model)
    if unknown := wanted - present.keys():
        raise UserError(f"cannot freeze {', '.join(sorted(unknown))}: the model has {', '.join(present)}")
    for name, modules in present.items():
        for module in modules:
            module.requires_grad_(name not in wanted)
            module.train(model.training and name not in wanted)
    for name, head in (("contrastive", model.vision_head), ("ctc", model.audio_head)):
        if head is not None and losses is not None and name not in losses:
            head.requires_grad_(False)


def frozen_parts(model: OmniModel) -> list[str]:
    """Names of the parts that do not learn."""
    return [name for name, modules in parts_of(model).items() if is_frozen(modules)]


def is_frozen(modules: Sequence[nn.Module]) -> bool:
    """Whether no parameter of these modules learns."""
    return not any(parameter.requires_grad for module in modules for parameter in module.parameters())
