"""A batch of given tokens, media and speech, and the losses of a model over it."""

from typing import Any

import torch
from torch import Tensor

from muomni.data import Batch
from muomni.model import OmniModel
from muomni.model.inputs import MediaBatch
from muomni.model.talker import SpeechBatch
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE
from muomni.training.objectives.module import BatchLosses, LossModule, num_targets


def make_batch(
    ids: Tensor,
    labels: Tensor | None = None,
    positions: Tensor | None = None,
    segments: Segments | None = None,
    media: MediaBatch | None = None,
    speech: SpeechBatch | None = None,
) -> Batch:
    """Each row is one document, unless `segments` says otherwise."""
    rows, length = ids.shape
    labels = ids if labels is None else labels
    bounds = torch.arange(rows + 1, dtype=torch.int32) * length
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(length).repeat(rows, 1) if positions is None else positions,
        cu_seqlens=bounds if segments is None else segments.cu_seqlens,
        max_seqlen=length if segments is None else segments.max_seqlen,
        num_targets=int((labels[:, 1:] != IGNORE).sum()),
        id="",
        media=media,
        speech=speech,
    )


def losses_of(
    model: OmniModel, batch: Batch, weights: dict[str, float] | None = None, **denominators: Any
) -> BatchLosses:
    """Divided by the targets of this batch unless another denominator is given."""
    given = {name: max(1, count) for name, count in num_targets(batch).items()}
    losses: BatchLosses = LossModule(model, weights)(batch, given | denominators)
    return losses
