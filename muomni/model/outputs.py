"""What the model gives, and what can be given to it in place of media.

Legend: B batch, T tokens, D hidden_size, V vocabulary, N tokens of all pictures or of all clips of a batch.
"""

from dataclasses import dataclass, field

from torch import Tensor

from muomni.model.talker import TalkerLosses

LOSSES = ("text", "ctc", "contrastive", "speech")


@dataclass
class OmniOutput:
    """What a forward pass gives.

    Attributes:
        logits: (B, T, V), or (B, `last`, V); None when a loss was asked for: the loss needs no logits.
        loss: scalar, when labels were given: the weighted sum of `losses`.
        hidden: (B, T, D), the states the logits are made from; None where the text has no weight in the loss.
        losses: by name, each scalar and divided by its own divisor.
        impossible: scalar int64, transcripts with more bytes than fit their clip, which add nothing to the loss; None
            where there was no CTC loss.
        speech: the sums that `losses["speech"]` consists of; None where there was none.
    """

    hidden: Tensor | None
    logits: Tensor | None = None
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    impossible: Tensor | None = None
    speech: TalkerLosses | None = None


@dataclass(frozen=True)
class Features:
    """What stands in the place of placeholders.

    Attributes:
        image, audio: (N, D) of `embed_images` and `embed_clips`; None where there are none.
    """

    image: Tensor | None = None
    audio: Tensor | None = None
