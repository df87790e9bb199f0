"""A model as the speaker that `muomni.eval.speech_quality` evaluates and `muomni.bench.speech` times."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from muomni.data.media.audio import Samples
from muomni.errors import UserError
from muomni.infer.speech import speech_of
from muomni.infer.speech.speaker import talker_of

if TYPE_CHECKING:
    from muomni.api.model import MuOmni


class ModelSpeaker:
    """A model that says given texts, whole or in chunks.

    A text that is spoken in chunks comes to the talker token by token, as the Thinker writes its replies.

    Args:
        model: with a talker and a tokenizer.
        settings: fields of `infer.speech.SpeechSettings` for all texts, but for the voice.

    Raises:
        UserError: the model has no talker, or no tokenizer.
    """

    def __init__(self, model: "MuOmni", **settings: Any) -> None:
        talker_of(model)
        if model.tokenizer is None:
            raise UserError("the model has no tokenizer, so it cannot say a text")
        self._model, self._tokenizer = model, model.tokenizer
        self._settings = settings

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        """See `eval.speech_quality.Speaker`.

        Raises:
            SpeechError: the text could not be spoken.
        """
        return speech_of(self._model.say(text, voice=voice, **self._settings))

    def say_chunks(self, text: str, *, voice: str | None = None) -> Iterator[tuple[Samples, int]]:
        """See `eval.speech_quality.StreamingSpeaker`.

        Raises:
            SpeechError: the text could not be spoken.
        """
        for chunk in self._model.say_stream(self._tokens(text), voice=voice, **self._settings):
            assert chunk.audio is not None and chunk.sample_rate is not None
            yield chunk.audio.numpy(), chunk.sample_rate

    def _tokens(self, text: str) -> Iterator[str]:
        """The text as it would be written, a token at a time."""
        decoder = self._tokenizer.stream()
        for token in self._tokenizer.encode(text):
            yield decoder.push([token])
        yield decoder.finish()
