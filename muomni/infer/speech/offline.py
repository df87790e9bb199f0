"""Texts that are known: the sentences of all of them side by side, and their codes to sound in groups."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muomni.data.media.audio import Samples
from muomni.data.speech.normalizer import missing_numbers
from muomni.data.speech.spoken_text import Word, spoken_words
from muomni.errors import PromptError, SpeechError
from muomni.infer.sampling import make_random
from muomni.infer.speech.settings import SpeechSettings
from muomni.infer.speech.speaker import Sentence, Speaker, SpeakerPool, codec_of, sentence_seed, talker_of
from muomni.infer.speech.text import SentenceText, encode_sentences
from muomni.infer.streaming import Reply, SpeechTiming
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec
from muomni.model.module_modes import eval_mode

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Whether a reply is spoken too; or its speech settings, fields of `SpeechSettings`.
Speak = bool | Mapping[str, Any] | SpeechSettings
# Steps between two looks at who has ended.
_LOOK = 4
# Frames that the codec decodes at one time, padding included.
_DECODED = 2048


@dataclass(frozen=True)
class Speech:
    """A spoken text.

    Attributes:
        text: what was to be spoken.
        audio: (samples,) float32 mono on the CPU; empty where it could not be spoken.
        sample_rate: in hertz.
        timing: where the time went.
        error: why it could not be spoken, or None.
    """

    text: str
    audio: Tensor
    sample_rate: int
    timing: SpeechTiming
    error: str | None = None


def speech_of(spoken: Reply | Speech) -> tuple[Samples, int]:
    """The speech of a reply or a text, (S,) float32 in numpy, and its rate in Hz.

    Raises:
        SpeechError: it has none.
    """
    if spoken.audio is None or spoken.sample_rate is None or not len(spoken.audio):
        raise SpeechError(f"no speech came for {spoken.text[:80]!r}" + (f": {spoken.error}" if spoken.error else ""))
    return spoken.audio.numpy(), spoken.sample_rate


def reply_speech(model: OmniModel, speak: Speak, seed: int | None) -> SpeechSettings | None:
    """The speech settings of a reply; None where it is not spoken.

    Args:
        model: has the voices.
        speak: see `MuOmni.chat`.
        seed: of the text; the speech takes it where its settings have none.

    Raises:
        PromptError: `speak` is none of these, or a setting is not allowed.
        UserError: the model has no Talker.
    """
    if speak is False:
        return None
    if isinstance(speak, SpeechSettings):
        settings = speak
    elif isinstance(speak, Mapping):
        settings = SpeechSettings.of(**speak)
    elif speak is True:
        settings = SpeechSettings()
    else:
        raise PromptError(f"speak = {speak!r}: must be True, False or the settings of the speech")
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


def text_seed(settings: SpeechSettings) -> int:
    """The seed of a text: its own, or a new one."""
    return make_random(None).getrandbits(62) if settings.seed is None else settings.seed


def nothing_to_say(text: str) -> SpeechError:
    """The error for a text without words."""
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return SpeechError(f"there is nothing to say in {shown!r}: it has no letter and no number")


def fade_in(sound: Tensor, done: int, rate: int) -> Tensor:
    """The next samples of a sentence, of which the first 5 ms come up from silence.

    Codes that were drawn at a high temperature may begin with a sample near full scale, which is heard as a click.

    Args:
        sound: (samples,).
        done: samples of the sentence before these.
        rate: in hertz.
    """
    length = rate // 200
    if done >= length:
        return sound
    return sound * ((torch.arange(done, done + len(sound)) / length).clamp(max=1))


def unspeakable(words: Sequence[Word], language: str) -> SpeechError | None:
    """The error for words that hold digits, which no voice has learnt; None where they can be spoken."""
    digits = next((word for word in words if any(c.isdigit() for c in word.spoken)), None)
    return None if digits is None else SpeechError(f"{digits.text[:60]!r}: {missing_numbers(language)}")


def speak_all(
    model: OmniModel,
    tokenizer: "Tokenizer",
    pool: SpeakerPool,
    texts: Sequence[tuple[str, SpeechSettings]],
    *,
    batch_size: int = 32,
) -> list[Speech]:
    """Speaks texts; the speech of each is the same whatever the others are, up to rounding.

    Args:
        model: with a Talker.
        tokenizer: of the model.
        pool: lends the speaker.
        texts: with the settings of each.
        batch_size: sentences side by side.

    Returns:
        the speech of each text; one without words, or with a sentence that failed, has an `error`.

    Raises:
        UserError: the model has no Talker.
        PromptError: it has no such voice.
    """
    began = time.perf_counter()
    config, codec = talker_of(model).config, codec_of(model)
    spoken: list[list[Sentence]] = []
    for text, settings in texts:
        voice, seed = settings.voice_number(config.voices), text_seed(settings)
        language = config.language(voice)
        sentences: list[Sentence] = []
        for n, words in enumerate(spoken_words(text, language)):
            sentence = Sentence(SentenceText(words), settings, voice, sentence_seed(seed, n))
            sentence.error = unspeakable(words, language)
            sentences.append(sentence)
        spoken.append(sentences)
    every = [sentence for parts in spoken for sentence in parts if sentence.error is None]
    if every:
        with pool.lend(model, min(batch_size, len(every))) as speaker:
            _speak(model, tokenizer, speaker, every)
    sounds = _decode(codec, [s for s in every if s.error is None], config.flush)
    work = time.perf_counter() - began
    total = sum(len(sound) for sound in sounds.values())
    speeches = []
    for (text, settings), parts in zip(texts, spoken, strict=True):
        errors = [sentence.error for sentence in parts if sentence.error is not None]
        if errors or not parts:
            error = errors[0] if errors else nothing_to_say(text)
            speeches.append(Speech(text, torch.empty(0), codec.sample_rate, SpeechTiming(0, 0.0, 0.0), str(error)))
            continue
        pause = torch.zeros(round(settings.pause * codec.sample_rate))
        pieces = [piece for sentence in parts for piece in (pause, sounds[sentence])][1:]
        share = sum(len(sounds[sentence]) for sentence in parts) / total
        audio = torch.cat(pieces)
        timing = SpeechTiming(len(parts), len(audio) / codec.sample_rate, work * share)
        speeches.append(Speech(text, audio, codec.sample_rate, timing))
    return speeches


def _speak(model: OmniModel, tokenizer: "Tokenizer", speaker: Speaker, sentences: Sequence[Sentence]) -> None:
    # The longest first: at the end few slots are left without work.
    waiting = sorted(sentences, key=lambda sentence: sentence.text.coming)
    encoded: list[Sentence] = []
    slots = speaker.slots
    while waiting or encoded or slots.free < slots.count:
        while slots.free and (waiting or encoded):
            if not encoded:
                encoded = [waiting.pop() for _ in range(min(slots.count, len(waiting)))][::-1]
                with torch.inference_mode(), eval_mode(model):
                    encode_sentences(model, tokenizer, [sentence.text for sentence in encoded])
            speaker.add(encoded.pop())
        for sentence in speaker.run(_LOOK):
            if sentence.done:
                sentence.text.encoded = None


def _decode(codec: SpeechCodec, sentences: Sequence[Sentence], flush: int) -> dict[Sentence, Tensor]:
    """(samples,) of each sentence."""
    sounds: dict[Sentence, Tensor] = {}
    group: list[Sentence] = []

    def decode_group() -> None:
        codes = [sentence.codes(0, sentence.frames or 0, flush).T for sentence in group]
        decoded = (fade_in(sound.float().cpu(), 0, codec.sample_rate) for sound in codec.decode(codes))
        sounds.update(zip(group, decoded, strict=True))
        group.clear()

    with eval_mode(codec):
        for sentence in sorted(sentences, key=lambda sentence: sentence.frames or 0):
            if group and (len(group) + 1) * (sentence.frames or 0) > _DECODED:
                decode_group()
            group.append(sentence)
        if group:
            decode_group()
    return sounds
