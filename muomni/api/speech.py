"""The part of `MuOmni` that speaks: texts, and the replies of a chat."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from muomni.config import OmniConfig
from muomni.errors import PromptError, SpeechError, UserError
from muomni.infer.reply import Chunk, Reply, Timing
from muomni.infer.speech.offline import speak_all
from muomni.infer.speech.settings import SpeechSettings, speech_settings
from muomni.infer.speech.speaker_pool import SpeechSession, talker_of
from muomni.infer.speech.streaming import TextSpeech, speak_pieces
from muomni.model import OmniModel

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Sentences that are spoken side by side, where nothing else is said.
_SIDE_BY_SIDE = 32
# Whether a reply is spoken too; or how, as settings of `SpeechSettings`.
Speak = bool | Mapping[str, Any] | SpeechSettings


class SpeakingModel(OmniModel):
    """A model with a tokenizer that speaks, where it has a Talker.

    Args:
        config, generator: see `OmniModel`.
        tokenizer: for everything that takes or gives text.
    """

    def __init__(
        self, config: OmniConfig, generator: torch.Generator | None = None, tokenizer: "Tokenizer | None" = None
    ) -> None:
        super().__init__(config, generator)
        self.tokenizer = tokenizer
        self._speech = SpeechSession()

    def say(self, text: str, **settings: Any) -> Reply:
        """Speaks a text, in one voice from its beginning to its end.

        Args:
            text: what is said; marks of Markdown and emoji are left out, numbers are put into words.
            settings: fields of `SpeechSettings`, such as `voice`, `temperature` and `seed`.

        Returns:
            a reply with `audio`, `sample_rate` and, where the time went, `speech`.

        Raises:
            UserError: the model does not speak.
            PromptError: a setting that is not allowed.
            SpeechError: there is nothing to say, or the speech came to no end.
        """
        return self.say_batch([text], on_error="raise", **settings)[0]

    def say_batch(
        self,
        texts: Sequence[str],
        *,
        settings: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = _SIDE_BY_SIDE,
        on_error: Literal["raise", "reply"] = "reply",
        **common: Any,
    ) -> list[Reply]:
        """Speaks many texts, their sentences side by side.

        In fp32 the speech is that of `say`, up to rounding.

        Args:
            texts: each as `say` takes it.
            settings: of each text, which go before `common`; None where all have the same.
            batch_size: at most this many sentences side by side.
            on_error: what becomes of a text that cannot be spoken: `reply` gives it a reply with `finish_reason`
                "error" and its `error`, `raise` raises the first of them.
            common: fields of `SpeechSettings` for all texts. The same seed gives each text the speech that `say`
                gives it with that seed.

        Returns:
            a reply to each text, in their order.

        Raises:
            as `say`, for a text that cannot be spoken with `on_error="raise"` only.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
            raise PromptError("what is to be said must be texts: a text for say, a list of texts for say_batch")
        if settings is not None and len(settings) != len(texts):
            raise PromptError(f"settings has {len(settings)} entries for {len(texts)} texts: give one for each")
        each = [SpeechSettings.of(**{**common, **(settings[n] if settings else {})}) for n in range(len(texts))]
        blank = [Reply(text, (), "stop", Timing(0, 0, 0.0, 0.0)) for text in texts]
        return self._spoken(blank, each, on_error=on_error, batch_size=batch_size)

    def say_stream(self, text: str | Iterable[str], **settings: Any) -> Iterator[Chunk]:
        """As `say`, but gives the sound in pieces, the first ones small, as soon as they are computed.

        Args:
            text: whole, or in pieces that still come, cut anywhere; what is said is the same.
            settings: as for `say`.

        Returns:
            An iterator over `Chunk`s with `audio`; leaving it early stops the speech.

        Raises:
            as `say`; a SpeechError behind the pieces that could be spoken.
        """
        speech = TextSpeech(self, self._tokenizer(), self._speech, SpeechSettings.of(**settings))
        return speak_pieces(speech, [text] if isinstance(text, str) else text)

    def _asked_speech(self, speak: Speak, seed: int | None) -> SpeechSettings | None:
        """What is asked of the speech of a reply; wrong settings and a model without a voice are told at once."""
        settings = speech_settings(speak)
        if settings is None:
            return None
        settings.voice_number(talker_of(self).config.voices)
        return settings if settings.seed is not None else replace(settings, seed=seed)

    def _spoken(
        self,
        replies: Sequence[Reply],
        settings: Sequence[SpeechSettings],
        *,
        on_error: Literal["raise", "reply"],
        batch_size: int = _SIDE_BY_SIDE,
    ) -> list[Reply]:
        """Replies with their speech; those that failed already stay as they are."""
        check_how(on_error, batch_size)
        asked = [
            (n, one.text, how) for n, (one, how) in enumerate(zip(replies, settings, strict=True)) if not one.error
        ]
        texts = [(text, how) for _, text, how in asked]
        made = speak_all(self, self._tokenizer(), self._speech, texts, batch_size=batch_size)
        done = list(replies)
        for (n, _, _), speech in zip(asked, made, strict=True):
            if not isinstance(speech, SpeechError):
                done[n] = speech.added(done[n])
            elif on_error == "raise":
                name = "" if len(replies) == 1 else f"text {n + 1} of {len(replies)}: "
                raise SpeechError(f"{name}{speech}")
            else:
                done[n] = replace(done[n], finish_reason="error", error=str(speech))
        return done

    def _tokenizer(self) -> "Tokenizer":
        if self.tokenizer is None:
            raise UserError(
                "this model has no tokenizer, so it neither reads nor writes text: use generate with token ids, "
                "or set model.tokenizer (a folder has one when it holds tokenizer.json)"
            )
        if self.tokenizer.vocab_size > self.config.thinker.vocab_size:
            raise UserError(
                f"the tokenizer has ids up to {self.tokenizer.vocab_size - 1}, but the model's vocabulary is "
                f"{self.config.thinker.vocab_size}: it belongs to another model"
            )
        return self.tokenizer


def check_how(on_error: str, batch_size: int) -> None:
    """Refuses what `chat_batch` and `say_batch` cannot do.

    Raises:
        PromptError: naming the option.
    """
    if batch_size < 1:
        raise PromptError(f"batch_size = {batch_size}: must be at least 1")
    if on_error not in ("raise", "reply"):
        raise PromptError(f"on_error = {on_error!r}: must be 'raise' or 'reply'")
