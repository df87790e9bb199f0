"""The interface of an objective, and what objectives read of a forward pass.

Legend: B batch, T tokens, D hidden_size of the Thinker, N tokens of all pictures or of all clips of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from muomni.data import Batch
from muomni.model import OmniModel


@dataclass
class Outputs:
    """What was computed of a batch, as far as an objective asked for it.

    Attributes:
        hidden: (B, T, D) of the Thinker.
        image, audio: (N, width) tokens of the encoders, before their projectors.
    """

    hidden: Tensor | None = None
    image: Tensor | None = None
    audio: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A loss before it is divided.

    Attributes:
        total: scalar, summed over the targets.
        details: scalars for the log, by name, also sums.
    """

    total: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One loss.

    Attributes:
        name: in recipes and metrics.
    """

    name: str

    def check(self, model: OmniModel) -> None:
        """Raises `UserError` where the model has no part for this loss."""

    def num_targets(self, batch: Batch) -> int:
        """What the loss is a mean over, known on the host; 0 where the batch holds nothing to learn from."""

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """The summed loss of a batch, which holds at least a stand-in for what this objective learns from."""
