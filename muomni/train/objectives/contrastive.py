"""Pictures and their captions find each other."""

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.train.objectives.objective import Loss, Outputs


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
        words = model.thinker.embed_tokens(batch.media.captions.ids)
        counts = model.vision.counts(batch.media.images)
        return Loss(model.vision_head(outputs.image, counts, words, batch.media.captions))
