"""What `MuOmni` does with speech besides the speaking itself: checks of the arguments, and speech of replies."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from muomni.errors import PromptError, SpeechError
from muomni.infer.request import Reply
from muomni.infer.speech import Speech, SpeechSettings, speech_settings
from muomni.infer.speech.speaker import talker_of
from muomni.model import OmniModel

# Whether a reply is spoken too; or its speech settings, fields of `SpeechSettings`.
Speak = bool | Mapping[str, Any] | SpeechSettings
OnError = Literal["raise", "reply"]


def reply_speech(model: OmniModel, speak: Speak, seed: int | None) -> SpeechSettings | None:
    """The speech settings of a reply; None where it is not spoken.

    Args:
        model: has the voices.
        speak: see `MuOmni.chat`.
        seed: of the text; the speech takes it where its settings have none.

    Raises:
        PromptError: a setting is not allowed.
        UserError: the model has no Talker.
    """
    settings = speech_settings(speak)
    if settings is None:
        return None
    settings.voice_number(talker_of(model).config.voices)
    return settings if settings.seed is not None else replace(settings, seed=seed)


def text_settings(
    texts: Sequence[str], settings: Sequence[Mapping[str, Any]] | None, common: Mapping[str, Any]
) -> list[SpeechSettings]:
    """The speech settings of each text of `MuOmni.say_batch`.

    Raises:
        PromptError: `texts` is no list of texts, `settings` has another length, or a setting is not allowed.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
        raise PromptError("what is to be said must be texts: a text for say, a list of texts for say_batch")
    if settings is not None and len(settings) != len(texts):
        raise PromptError(f"settings has {len(settings)} entries for {len(texts)} texts: give one for each")
    return [SpeechSettings.of(**{**common, **(settings[n] if settings else {})}) for n in range(len(texts))]


def add_speech(reply: Reply, speech: Speech) -> Reply:
    """The reply with its speech, or with the error of its speech."""
    if speech.error is not None:
        return replace(reply, finish_reason="error", error=speech.error)
    return replace(reply, audio=speech.audio, sample_rate=speech.sample_rate, speech=speech.timing)


def check_spoken(speeches: Sequence[Speech]) -> None:
    """Raises the first error.

    Raises:
        SpeechError: naming the text.
    """
    for number, speech in enumerate(speeches, 1):
        if speech.error is not None:
            raise SpeechError(
                f"text {number} of {len(speeches)}: {speech.error}" if len(speeches) > 1 else speech.error
            )


def check_batch(on_error: str, batch_size: int) -> None:
    """Checks arguments of `chat_batch` and `say_batch`.

    Raises:
        PromptError: naming the argument.
    """
    if batch_size < 1:
        raise PromptError(f"batch_size = {batch_size}: must be at least 1")
    if on_error not in ("raise", "reply"):
        raise PromptError(f"on_error = {on_error!r}: must be 'raise' or 'reply'")
