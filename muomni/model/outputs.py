"""What the model gives, and what can be given to it in place of media.

Legend: B batch, T tokens, D hidden_size, V vocabulary, N tokens of all pictures or of all clips of a batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class OmniOutput(NamedTuple):
    """What a forward pass gives; the loss comes first, where `transformers.Trainer` looks for it.

    Attributes:
        loss: scalar, when labels were given: the mean over target tokens.
        logits: (B, T, V), or (B, `logits_to_keep`, V); None when labels were given: the loss needs no logits.
        hidden: (B, T, D), the states the logits are made from.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """What stands in the place of placeholders.

    Attributes:
        image, audio: (N, D), see `OmniModel.encode_media`; None where there are none.
        stand_ins: of `image` and `audio`: no placeholder takes these features, see `ImageBatch`.
    """

    image: Tensor | None = None
    audio: Tensor | None = None
    stand_ins: frozenset[str] = frozenset()
