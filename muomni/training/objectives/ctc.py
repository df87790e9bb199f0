"""The audio encoder spells what is said in a clip, in UTF-8 bytes (CTC: Graves et al., 2006)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.model.encoders.auxiliary_heads import CtcHead
from muomni.model.inputs import Transcripts
from muomni.ops.audio_frames import CTC_STEPS, num_tokens
from muomni.training.objectives.objective import Loss, Outputs


def fitting(transcripts: Transcripts, counts: Sequence[int]) -> list[int]:
    """Bytes of the transcripts that fit their clips; those of others teach nothing.

    Args:
        transcripts: of some clips.
        counts: tokens of all clips.
    """
    rows = zip(transcripts.clips, transcripts.lengths, transcripts.steps, strict=True)
    return [length for clip, length, steps in rows if steps <= counts[clip] * CTC_STEPS]


def ctc_loss(head: CtcHead, tokens: Tensor, counts: Sequence[int], transcripts: Transcripts) -> Tensor:
    """-ln of the transcripts' probabilities, summed; transcripts that do not fit their clips add nothing.

    Args:
        head: spells.
        tokens: (N, D) of the audio encoder, clip behind clip.
        counts: tokens of each clip; they add up to N.
        transcripts: of some of the clips, at least one.

    Returns:
        Scalar, fp32 (fp64 for fp64).
    """
    logits = head(tokens, counts, transcripts.clips)
    return F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        transcripts.targets,
        torch.tensor([counts[clip] for clip in transcripts.clips]) * CTC_STEPS,
        torch.tensor(transcripts.lengths),
        reduction="sum",
        zero_infinity=True,
    )


class CtcObjective:
    """Of the audio encoder's `CtcHead`, summed over bytes of transcripts."""

    name = "ctc"

    def check(self, model: OmniModel) -> None:
        """Raises `UserError` without the head."""
        if model.audio_head is None:
            raise UserError("the model has no head for the ctc loss: its audio.ctc is not set")

    def num_targets(self, batch: Batch) -> int:
        """Bytes of the transcripts that fit their clips."""
        media = batch.media
        if media is None or media.clips is None or media.transcripts is None:
            return 0
        return sum(fitting(media.transcripts, [num_tokens(frames) for frames in media.clips.frames]))

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """Details: `impossible`, transcripts that do not fit their clips."""
        assert model.audio is not None and model.audio_head is not None and outputs.audio is not None
        assert batch.media is not None and batch.media.clips is not None and batch.media.transcripts is not None
        transcripts, counts = batch.media.transcripts, model.audio.counts(batch.media.clips)
        impossible = len(transcripts.clips) - len(fitting(transcripts, counts))
        total = ctc_loss(model.audio_head, outputs.audio, counts, transcripts)
        return Loss(total, {"impossible": torch.full((), impossible, device=total.device)})
