"""The audio encoder spells what is said in a clip."""

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model import OmniModel
from muomni.train.objectives.objective import Loss, Outputs


class CtcObjective:
    """Of the audio encoder's `CtcHead`, summed over bytes of transcripts."""

    name = "ctc"

    def check(self, model: OmniModel) -> None:
        """Raises `UserError` without the head."""
        if model.audio_head is None:
            raise UserError("the model has no head for the ctc loss: its audio.ctc is not set")

    def num_targets(self, batch: Batch) -> int:
        """Bytes of transcripts."""
        transcripts = None if batch.media is None else batch.media.transcripts
        return 0 if transcripts is None else sum(transcripts.lengths)

    def loss(self, model: OmniModel, outputs: Outputs, batch: Batch) -> Loss:
        """Details: `impossible`, transcripts with more bytes than their clip has steps, which add nothing."""
        assert model.audio is not None and model.audio_head is not None and outputs.audio is not None
        assert batch.media is not None and batch.media.clips is not None and batch.media.transcripts is not None
        result = model.audio_head(outputs.audio, model.audio.counts(batch.media.clips), batch.media.transcripts)
        return Loss(result.total, {"impossible": result.impossible})
