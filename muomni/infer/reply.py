"""A reply and its chunks."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from muomni.infer.request import FinishReason


@dataclass(frozen=True)
class Chunk:
    """What became known since the piece before.

    Attributes:
        text: whole characters only; may be empty in the last piece.
        tokens: ids taken in since the piece before. Text held back belongs to a later piece than its tokens do.
        audio: (samples,) float32 mono that follows the sound before, in a piece of its own; None in a piece of text.
        sample_rate: of `audio`, in hertz.
    """

    text: str
    tokens: tuple[int, ...]
    audio: Tensor | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Timing:
    """Where the time went; times are seconds of computing, without what the reader of a stream spends between pieces.

    Attributes:
        prompt_tokens: tokens given.
        new_tokens: tokens generated, the end token included.
        prefill_s: from the start to the first new token.
        decode_s: from there to the last.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, per second of decoding; 0 where there are none."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Reply:
    """A finished answer; `str(reply)` is its text.

    Attributes:
        text: without end token, cut before a stop text.
        tokens: every id generated, the end token included.
        finish_reason: "stop" at an end token or a stop text, "length" at `max_new_tokens` or the end of the context,
            "error" where the prompt could not be answered, or the answer not be spoken.
        timing: see `Timing`.
        audio: (samples,) float32 mono, or None.
        sample_rate: of `audio`, in hertz.
        error: what is wrong with the prompt, where it could not be answered, or why the answer could not be spoken;
            else None.
        speech: where the time of speaking went, or None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | Literal["error"]
    timing: Timing
    audio: Tensor | None = None
    sample_rate: int | None = None
    error: str | None = None
    speech: "SpeechTiming | None" = None

    @classmethod
    def failed(cls, error: str) -> "Reply":
        """What stands in the place of the answer to a prompt that has none."""
        return cls("", (), "error", Timing(0, 0, 0.0, 0.0), error=error)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class SpeechTiming:
    """Where the time went.

    Attributes:
        sentences: that were spoken.
        audio_s: seconds of sound.
        work_s: seconds of computing it; of texts spoken side by side, all of it together divided by their length.
        first_s: seconds from the first text to the first sound, for speech that came in pieces; else None.
    """

    sentences: int
    audio_s: float
    work_s: float
    first_s: float | None = None

    @property
    def real_time(self) -> float:
        """Seconds of computing for a second of sound."""
        return self.work_s / self.audio_s if self.audio_s > 0 else 0.0
