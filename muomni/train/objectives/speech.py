"""The Talker speaks sentences as they were spoken."""

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.model.omni import MUTE
from muomni.train.objectives.objective import Loss, Outputs


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

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """Details: its two parts, `speech_codes` and `speech_moves`."""
        assert model.talker is not None and batch.speech is not None
        states = model.talker_states(batch.speech.ids, batch.speech.id_lengths)
        parts = model.talker(batch.speech, states)
        return Loss(parts.codes + parts.moves, {"speech_codes": parts.codes, "speech_moves": parts.moves})
