"""The model together with what it learns from: the module that training calls, and that DDP and FSDP wrap.

Each loss is a sum over its targets (text tokens, bytes of transcripts, captions, frames of speech), divided by its
own number of targets in the whole optimizer step, and times its weight in the recipe.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from muomni.data import Batch
from muomni.model import Features, OmniModel
from muomni.ops.attention import Segments
from muomni.training.freezing import is_frozen, parts_of
from muomni.training.objectives.contrastive import ContrastiveObjective
from muomni.training.objectives.ctc import CtcObjective
from muomni.training.objectives.objective import Loss, Objective, Outputs
from muomni.training.objectives.speech import SpeechObjective
from muomni.training.objectives.stand_ins import with_stand_ins


class TextObjective:
    """Next-token prediction of the Thinker: cross-entropy in nats, summed over target tokens."""

    name = "text"

    def check(self, model: OmniModel) -> None:
        """Every model reads text."""

    def num_targets(self, batch: Batch) -> int:
        """Target tokens."""
        return batch.num_targets

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """Of the Thinker's states."""
        assert outputs.hidden is not None
        return Loss(model.text_loss(outputs.hidden, batch.labels))


# In the order in which they are computed and added up.
OBJECTIVES: tuple[Objective, ...] = (TextObjective(), ContrastiveObjective(), CtcObjective(), SpeechObjective())
_BY_NAME = {objective.name: objective for objective in OBJECTIVES}


def num_targets(batch: Batch) -> dict[str, int]:
    """What the losses of a batch are means over, known on the host.

    `text` tokens, `contrastive` captions, `ctc` bytes of transcripts, `speech` frames.
    """
    return {objective.name: objective.num_targets(batch) for objective in OBJECTIVES}


@dataclass
class BatchLosses:
    """What a forward pass gives in training.

    Attributes:
        total: scalar, the weighted sum of `losses`: what is learnt from.
        losses: by name, each divided by its own denominator; without those that the batch holds nothing for.
        details: sums by name, see the objectives.
    """

    total: Tensor
    losses: dict[str, Tensor]
    details: dict[str, Tensor]


class LossModule(nn.Module):
    """A model and its weighted losses. Checkpoints hold the model only.

    Args:
        model: what learns. Parts that are frozen (`training.freezing`) stay in evaluation mode.
        weights: of the losses, by name; those with 0 are not computed. That of the text is 1 unless it is named.

    Raises:
        ValueError: no loss of that name.
        UserError: the model has no part for a loss.
    """

    def __init__(self, model: OmniModel, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.model = model
        given = {"text": 1.0} | dict(weights or {})
        if unknown := given.keys() - _BY_NAME.keys():
            raise ValueError(f"no loss is called {', '.join(sorted(unknown))}: there are {', '.join(_BY_NAME)}")
        self.weights = {name: given[name] for name in _BY_NAME if given.get(name, 0) > 0}
        for name in self.weights:
            _BY_NAME[name].check(model)
        self.train(model.training)

    def train(self, mode: bool = True) -> Self:
        """As ever, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for modules in parts_of(self.model).values():
            if is_frozen(modules):
                for module in modules:
                    module.eval()
        return self

    def forward(
        self, batch: Batch, denominators: Mapping[str, int | Tensor], names: Collection[str] | None = None
    ) -> BatchLosses:
        """The losses of a batch.

        Args:
            batch: on the model's device.
            denominators: of each loss, at least 1: in training the targets of the whole optimizer step.
            names: of the losses to compute; None for those that have a weight.
        """
        wanted = [name for name in _BY_NAME if name in (self.weights if names is None else names)]
        real = {name: _BY_NAME[name].num_targets(batch) > 0 or name == "text" for name in wanted}
        segments = Segments(batch.cu_seqlens, batch.max_seqlen).rounded(batch.input_ids.numel())
        return self._compute(with_stand_ins(batch, self.model, wanted), segments, denominators, real)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what runs on the device; numbers known on the host would compile it anew for every batch."""
        self.__dict__["_compute"] = torch.compile(type(self)._compute.__get__(self), *args, **kwargs)  # noqa: SLF001 - its own

    def _compute(
        self, batch: Batch, segments: Segments, denominators: Mapping[str, int | Tensor], real: Mapping[str, bool]
    ) -> BatchLosses:
        """The losses named in `real`; those that have stand-ins only weigh nothing."""
        outputs = self._outputs(batch, segments, real)
        total: Tensor | None = None
        losses: dict[str, Tensor] = {}
        details: dict[str, Tensor] = {}
        for name in real:
            found = _BY_NAME[name].loss(self.model, outputs, batch)
            loss = found.total / denominators[name] if real[name] else found.total * 0
            weight = self.weights.get(name, 1.0)
            part = loss if weight == 1 else loss * weight
            total = part if total is None else total + part
            if real[name]:
                losses[name] = loss
                details |= found.details
        assert total is not None
        return BatchLosses(total, losses, details)

    def _outputs(self, batch: Batch, segments: Segments, wanted: Collection[str]) -> Outputs:
        """Each encoder runs once, whatever reads its tokens."""
        model, media, text = self.model, batch.media, "text" in wanted
        outputs = Outputs()
        if media is not None and media.images is not None and (text or "contrastive" in wanted):
            outputs.image = model.encode_images(media.images)
        if media is not None and media.clips is not None and (text or "ctc" in wanted):
            outputs.audio = model.encode_clips(media.clips)
        if text:
            features = Features(
                None if outputs.image is None else model.project_images(outputs.image),
                None if outputs.audio is None else model.project_clips(outputs.audio),
                frozenset() if media is None else media.stand_ins,
            )
            outputs.hidden = model.hidden_states(
                batch.input_ids, media=features, positions=batch.positions, segments=segments
            )
        return outputs
