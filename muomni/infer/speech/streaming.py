"""Speech while its text still comes: small pieces first, so that the first sound is soon there, then larger ones.

One sentence after the other. What is spoken does not depend on how the text was cut into pieces nor on when they
came, and is what `speak_all` makes of the whole text.
"""

import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muomni.data.speech.spoken_text import SpokenText, Word, units_of
from muomni.errors import SpeechError
from muomni.infer.speech.heard import SaidWords
from muomni.infer.speech.offline import fade_in, nothing_to_say, text_seed, unspeakable
from muomni.infer.speech.settings import SpeechSettings
from muomni.infer.speech.speaker import Sentence, Speaker, SpeakerPool, codec_of, sentence_seed, talker_of
from muomni.infer.speech.text import SentenceText, encode_sentences
from muomni.infer.streaming import Chunk, ReplyStream, SpeechTiming
from muomni.model import OmniModel
from muomni.model.codec.streaming import StreamingDecoder
from muomni.model.module_modes import eval_mode

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Frames of the pieces of a text, the last size again and again. The codec takes as long for one frame as for several.
_PIECES = (3, 4, 6, 8, 12, 16, 25)
# Frames that are computed before whoever waits for text has its turn again.
_TURN = 8
# Seconds that speech is ahead of whoever listens before text goes first.
AHEAD_S = 1.0
# Seconds from the first text on in which the first sound should be there.
_SOON_S = 0.12


class TextSpeech:
    """The speech of one text that comes in pieces. Computes when asked to, in small turns.

    Args:
        model: with a Talker.
        tokenizer: of the model.
        pool: lends the speaker.
        settings: of the text.

    Attributes:
        said: when the words were said of which sound has been given.

    Raises:
        UserError: the model has no Talker.
        PromptError: it has no such voice.
    """

    def __init__(self, model: OmniModel, tokenizer: "Tokenizer", pool: SpeakerPool, settings: SpeechSettings) -> None:
        talker = talker_of(model)
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._codec = codec_of(model)
        self._lookahead, self._flush = talker.config.lookahead, talker.config.flush
        self._voice = settings.voice_number(talker.config.voices)
        self._seed = text_seed(settings)
        self._language = talker.config.language(self._voice)
        self._text = SpokenText(self._language)
        self._source: list[str] = []
        self._sentences: deque[Sentence] = deque()
        self._count = 0
        self._finished = False
        self._decoder: StreamingDecoder | None = None
        self._heard = 0  # samples of the sentence that have been given
        self._piece = 0  # which of the pieces is next
        self._began: float | None = None
        self._first: float | None = None
        self._work = self._samples = 0.0
        self._start = 0.0  # of the sentence, in seconds
        self.said = SaidWords()
        self._pool = pool
        self._speaker: Speaker | None = pool.join(model)

    @property
    def sample_rate(self) -> int:
        """Of the sound, in hertz."""
        return self._codec.sample_rate

    @property
    def ended(self) -> bool:
        """Whether all has been said."""
        return self._finished and not self._sentences

    @property
    def lead(self) -> float:
        """Seconds that who listens still has to listen to, or until the first sound is due; below 0 it waits."""
        if self._began is None:
            return -math.inf
        if self._first is None:
            return self._began + _SOON_S - time.perf_counter()
        heard = time.perf_counter() - self._began - self._first
        return self._samples / self.sample_rate - heard

    @property
    def ahead(self) -> bool:
        """Whether who listens has enough to listen to for now."""
        return self.lead > AHEAD_S

    @property
    def timing(self) -> SpeechTiming:
        """Up to now."""
        return SpeechTiming(self._count, self._samples / self.sample_rate, self._work, self._first)

    def push(self, text: str) -> None:
        """Takes more of the text."""
        if text and self._began is None:
            self._began = time.perf_counter()
        self._source.append(text)
        self._take(self._text.push(text))

    def finish(self) -> None:
        """Says that the text is complete.

        Raises:
            SpeechError: there was nothing to say in it.
        """
        self._finished = True
        self._take(self._text.finish())
        if not self._count:
            raise nothing_to_say("".join(self._source))

    def close(self) -> None:
        """Gives back what was borrowed; nothing can be computed after it."""
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            self._pool.leave(speaker, self._sentences[0] if self._sentences else None)
        self._sentences.clear()

    def work(self) -> Tensor | None:
        """One turn of computing.

        Returns:
            (samples,) float32 on the CPU that it completed; None where there are none yet.

        Raises:
            SpeechError: the sentence cannot be spoken.
        """
        if not self.can_work:
            return None
        began = time.perf_counter()
        sound = self._turn(self._sentences[0])
        now = time.perf_counter()
        self._work += now - began
        if sound is not None:
            self._samples += len(sound)
            if self._first is None and self._began is not None:
                self._first = now - self._began
        return sound

    @property
    def can_work(self) -> bool:
        """Whether there is anything to compute with the text that is known, or frames to be made sound of."""
        if not self._sentences:
            return False
        sentence = self._sentences[0]
        if sentence.error is not None:
            return True
        return self._reads_on(sentence) or self._goes_on(sentence) or sentence.done or self._waiting(sentence) > 0

    def _waiting(self, sentence: Sentence) -> int:
        """Frames that have not become sound."""
        return sentence.ready(self._flush) - sentence.sounded

    def _goes_on(self, sentence: Sentence) -> bool:
        speaker = self._speaker
        known = sentence.text.encoded is not None and not sentence.done
        return speaker is not None and known and speaker.safe(sentence) > 0

    def _reads_on(self, sentence: Sentence) -> bool:
        """Whether encoding the words that came lets the sentence go on."""
        text = sentence.text
        more = text.coming > text.known and not sentence.done
        return more and (text.whole or text.coming - self._lookahead > sentence.pointer)

    def _take(self, words: Iterable[Word]) -> None:
        for word in words:
            if word.first:
                text = SentenceText()
                seed = sentence_seed(self._seed, self._count)
                self._sentences.append(Sentence(text, self._settings, self._voice, seed))
                self._count += 1
            self._sentences[-1].text.words.append(word)
            if (error := unspeakable([word], self._language)) is not None:
                self._sentences[-1].error = error

    def _turn(self, sentence: Sentence) -> Tensor | None:
        speaker = self._speaker
        assert speaker is not None
        if sentence.error is not None:
            raise sentence.error
        # The more listen, the longer it takes until all others have had their turn.
        wanted = max(_PIECES[min(self._piece, len(_PIECES) - 1)], speaker.listeners // 2 + 2)
        missing = wanted - self._waiting(sentence)  # none where another listener's turn has computed it
        if sentence.text.encoded is None or speaker.safe(sentence) < min(_TURN, missing):
            self._read(speaker, sentence)
        if missing > 0 and self._goes_on(sentence):
            speaker.run(min(_TURN, missing + self._flush * (sentence.steps == 0)), sentence)
        if sentence.error is not None:
            raise sentence.error
        frames = min(wanted, self._waiting(sentence))
        stuck = not self._goes_on(sentence) and not self._reads_on(sentence)
        if not sentence.done and not (frames >= wanted or (stuck and frames)):
            return None
        return self._sound(sentence, frames)

    def _read(self, speaker: Speaker, sentence: Sentence) -> None:
        """Encodes the words that came since, if they let it go on."""
        if not self._reads_on(sentence):
            return
        begins = sentence.text.encoded is None
        with speaker.lock, torch.inference_mode(), eval_mode(self._model):
            encode_sentences(self._model, self._tokenizer, [sentence.text])
            if begins:
                speaker.add(sentence)
            else:
                speaker.renew(sentence)

    def _sound(self, sentence: Sentence, frames: int) -> Tensor:
        """(samples,) of the next frames."""
        pause = None
        if self._decoder is None:
            self._decoder = StreamingDecoder(self._codec)
            if self._samples:
                pause = torch.zeros(round(self._settings.pause * self.sample_rate))
            self._start = (self._samples + (0 if pause is None else len(pause))) / self.sample_rate
        self._note(sentence, frames)
        codes = sentence.codes(sentence.sounded, sentence.sounded + frames, self._flush)
        with eval_mode(self._codec):
            sound = self._decoder.push(codes.T[None])[0].float().cpu() if frames else torch.empty(0)
        sound = fade_in(sound, self._heard, self.sample_rate)
        self._heard += len(sound)
        sentence.sounded += frames
        self._piece += 1
        if sentence.sounded == sentence.frames:
            self._sentences.popleft()
            self._decoder, self._heard = None, 0
        return sound if pause is None else torch.cat((pause, sound))

    def _note(self, sentence: Sentence, frames: int) -> None:
        """Notes which words the next frames say."""
        words, frame_s = sentence.text.words, 1 / self._codec.frame_rate
        numbers = units_of(words)[1]
        units = sentence.units(sentence.sounded, sentence.sounded + frames)
        begin = self._start + sentence.sounded * frame_s
        self.said.add(begin, frame_s, [words[numbers[unit]].end for unit in units])


def speak_pieces(speech: TextSpeech, texts: Iterable[str]) -> Generator[Chunk]:
    """The speech of a text, given in pieces, in pieces; leaving early stops it.

    Raises:
        SpeechError: it cannot be spoken; pieces up to there have been given.
    """
    try:
        for text in texts:
            speech.push(text)
            while speech.can_work:
                yield from _pieces_of(speech)
        speech.finish()
        while not speech.ended:
            yield from _pieces_of(speech)
    finally:
        speech.close()


def _pieces_of(speech: TextSpeech) -> Iterator[Chunk]:
    sound = speech.work()
    if sound is not None and len(sound):
        yield Chunk("", (), sound, speech.sample_rate)


class SpokenStream(ReplyStream):
    """A reply that is spoken while it is written: chunks of text and of sound in turn.

    Text comes as soon as it is known: between two chunks of it at most one turn of speech is computed, and none
    while there is sound for some time to come. A failure of the speech is raised after the last chunk of text.

    Args:
        stream: the reply's text.
        speech: of that text; nothing has been pushed yet.
    """

    def __init__(self, stream: ReplyStream, speech: TextSpeech) -> None:
        self._stream = stream
        self._speech = speech
        self._sounds: list[Tensor] = []
        super().__init__()

    @property
    def text(self) -> str:
        """The text of the chunks so far."""
        return self._stream.text

    def close(self) -> None:
        """Stops early; there will be no `reply`."""
        self._chunks.close()
        self._stream.close()
        self._speech.close()

    def _run(self) -> Generator[Chunk]:
        speech = self._speech
        failure: SpeechError | None = None
        try:
            for piece in self._stream:
                yield piece
                speech.push(piece.text)
                try:
                    if failure is None and not speech.ahead:
                        yield from self._keep(_pieces_of(speech))
                except SpeechError as error:
                    failure = error
            if failure is not None:
                raise failure
            speech.finish()
            while not speech.ended:
                yield from self._keep(_pieces_of(speech))
            self._reply = replace(
                self._stream.reply,
                audio=torch.cat(self._sounds),
                sample_rate=speech.sample_rate,
                speech=speech.timing,
            )
        finally:
            self._stream.close()
            speech.close()

    def _keep(self, pieces: Iterator[Chunk]) -> Iterator[Chunk]:
        for piece in pieces:
            assert piece.audio is not None
            self._sounds.append(piece.audio)
            yield piece
