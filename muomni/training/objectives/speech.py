"""The Talker speaks sentences as they were spoken."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.model.omni import MUTE
from muomni.model.talker import SpeechBatch, Talker
from muomni.ops.cross_entropy import IGNORE
from muomni.training.objectives.objective import Loss, Outputs


@dataclass(frozen=True)
class TalkerLosses:
    """What the Talker's mistakes cost, summed over frames; scalars in fp32 (fp64 for fp64).

    Attributes:
        codes: cross-entropy of the codes of a frame, the mean over its codebooks.
        moves: cross-entropy of the moves, that of the last frame of a sentence times `stop_weight`.
    """

    codes: Tensor
    moves: Tensor


def talker_losses(talker: Talker, batch: SpeechBatch, states: Tensor) -> TalkerLosses:
    """The losses of all frames of a batch.

    Args:
        talker: speaks.
        batch: on its device.
        states: (N, Dt) the Thinker's, of `batch.ids`.
    """
    hidden, targets = talker(batch, states)
    logits = talker.codes.teacher_forced_logits(hidden, targets.codes.clamp(min=0))
    codes = [_summed(given, wanted) for given, wanted in zip(logits, targets.codes.unbind(1), strict=True)]
    moves = talker.move_logits(hidden)
    weight = hidden.new_ones(talker.config.num_moves, dtype=_wide(moves).dtype)
    weight[talker.config.stop] = talker.config.stop_weight
    return TalkerLosses(torch.stack(codes).sum() / len(codes), _summed(moves, targets.moves, weight))


def _summed(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.cross_entropy(_wide(logits), targets, weight=weight, ignore_index=IGNORE, reduction="sum")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class SpeechObjective:
    """Cross-entropy of codes and of the pointer's moves, summed over frames."""

    name = "speech"

    def check(self, model: OmniModel) -> None:
        """Raises `UserError` without a Talker."""
        if model.talker is None:
            raise UserError(MUTE)

    def num_targets(self, batch: Batch) -> int:
        """Frames."""
        return 0 if batch.speech is None else batch.speech.num_frames

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:  # noqa: ARG002 - as in `Objective`
        """Details: its two parts, `speech_codes` and `speech_moves`."""
        assert model.talker is not None and batch.speech is not None
        states = model.talker_states(batch.speech.ids, batch.speech.id_lengths)
        parts = talker_losses(model.talker, batch.speech, states)
        return Loss(parts.codes + parts.moves, {"speech_codes": parts.codes, "speech_moves": parts.moves})
