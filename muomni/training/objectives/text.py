"""Next-token prediction of the Thinker."""

from muomni.data import Batch
from muomni.model import OmniModel
from muomni.training.objectives.objective import Loss, Outputs


class TextObjective:
    """Cross-entropy in nats, summed over target tokens."""

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
