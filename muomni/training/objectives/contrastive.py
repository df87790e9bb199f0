"""Pictures and their captions find each other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.model.encoders.auxiliary_heads import ContrastiveHead
from muomni.model.inputs import Captions
from muomni.training.objectives.objective import Loss, Outputs


def contrastive_loss(
    head: ContrastiveHead, tokens: Tensor, counts: Sequence[int], embeddings: Tensor, captions: Captions
) -> Tensor:
    """The summed loss of the captions, half of it for each direction (CLIP: Radford et al., arXiv:2103.00020).

    A picture is to be found among the pictures with other captions, and its caption among the other captions
    (softmax over the captions of this call). Equal captions are no negatives of each other. A single caption has
    none and costs nothing.

    Args:
        head: scores them.
        tokens: see `ContrastiveHead.forward`.
        counts: likewise.
        embeddings: likewise.
        captions: likewise.

    Returns:
        Scalar, fp32 (fp64 for fp64).
    """
    scores = head(tokens, counts, embeddings, captions)
    places = torch.arange(len(scores), device=scores.device)
    equal = captions.groups[:, None] == captions.groups
    same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(equal & ~same, float("-inf"))
    by_picture, by_caption = (F.cross_entropy(x, places, reduction="sum") for x in (scores, scores.T))
    return (by_picture + by_caption) / 2


class ContrastiveObjective:
    """Of the vision encoder's `ContrastiveHead`, summed over captions."""

    name = "contrastive"

    def check(self, model: OmniModel) -> None:
        """Raises `UserError` without the head."""
        if model.vision_head is None:
            raise UserError("the model has no head for the contrastive loss: its vision.projection_dim is not set")

    def num_targets(self, batch: Batch) -> int:
        """Captions."""
        return 0 if batch.media is None or batch.media.captions is None else len(batch.media.captions.lengths)

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """Of the captions of this batch, which are told from each other only."""
        assert model.vision is not None and model.vision_head is not None and outputs.image is not None
        assert batch.media is not None and batch.media.images is not None and batch.media.captions is not None
        captions = batch.media.captions
        words = model.thinker.embed_tokens(captions.ids)
        counts = model.vision.counts(batch.media.images)
        return Loss(contrastive_loss(model.vision_head, outputs.image, counts, words, captions))
