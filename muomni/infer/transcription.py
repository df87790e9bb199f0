"""Transcription: a sound of any length is cut where it is quiet, and the model is asked what is said in each piece.

The question is that of training and of judging what a model hears (`scripts/prepare_media.py`, `muomni.eval.suite`).

S samples at 16 kHz.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from muomni.data.media.audio import Samples, Sound, audio_seconds, load_audio
from muomni.errors import MediaError, PromptError
from muomni.infer.encoder_cache import processor_of
from muomni.infer.preprocess import EngineInput, read_prompt
from muomni.infer.runtime import Runtime
from muomni.infer.sampling import SamplingParams
from muomni.model import OmniModel
from muomni.ops.audio_frames import FRAMES_PER_TOKEN, HOP, SAMPLE_RATE, num_frames, num_tokens
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

QUESTION = "What is said?"
# Longest sound; decoded it takes 920 MB.
LONGEST_S = 4 * 3600.0
# Longest and shortest piece.
_MOST_S, _LEAST_S = 30, 1
_SAMPLES_PER_TOKEN = HOP * FRAMES_PER_TOKEN
# A pause between words lasts longer than this.
_QUIET_S = 0.2
# New tokens for a piece of N tokens: 2 N and so many, several times what is said in the time.
_MORE_TOKENS = 32


@dataclass(frozen=True)
class Transcript:
    """What is said in a sound.

    Attributes:
        text: all of it, one line.
        seconds: of the sound.
        error: why there is none, or not all of it.
    """

    text: str
    seconds: float = 0.0
    error: str | None = None

    def __str__(self) -> str:
        return self.text


class Piece(NamedTuple):
    """A part of a sound as a prompt.

    Attributes:
        prompt: the messages.
        params: the settings.
        seconds: of the sound.
    """

    prompt: list[dict[str, Any]]
    params: SamplingParams
    seconds: float


class Transcriber:
    """How a model is asked what is said.

    Args:
        model: hears.
        tokenizer: of the model.
        hint: of subject or spelling, the system message; None for none.
        sampling: fields of `SamplingParams`; greedy, and for each piece as many tokens as it may need, unless given.

    Attributes:
        capacity: tokens of the longest prompt with its reply.

    Raises:
        UserError: the model does not hear.
        PromptError: a setting is not allowed, or the hint leaves no room for a sound.
    """

    def __init__(self, model: OmniModel, tokenizer: "Tokenizer", hint: str | None = None, **sampling: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._hint = hint
        self._sampling = {"temperature": 0.0, **sampling}
        SamplingParams.of(**self._sampling)
        seconds = min(_MOST_S, processor_of(model.config).audio.max_seconds)
        context = model.config.thinker.max_position_embeddings
        text = len(read_prompt(model, tokenizer, self._prompt(np.zeros(SAMPLE_RATE, np.float32))).ids) - 1
        self._longest = min(math.floor(seconds * SAMPLE_RATE), (context - text) // 2 * _SAMPLES_PER_TOKEN)
        if self._longest < _LEAST_S * SAMPLE_RATE:
            raise PromptError(f"the text around a sound takes {text} of the {context} tokens of the model's context: "
                              "no room is left to hear it; shorten it")  # fmt: skip
        tokens = self._longest // _SAMPLES_PER_TOKEN + 1
        self.capacity = min(context, text + tokens + sampling.get("max_new_tokens", _most_new(tokens)))

    def pieces(self, sound: Sound, max_seconds: float = LONGEST_S) -> list[Piece]:
        """The pieces of a sound, at least one.

        Args:
            sound: see `load_audio`.
            max_seconds: longest sound.

        Raises:
            MediaError: it cannot be read, or is too long.
        """
        return [self._piece(part) for part in cut(load_audio(sound, max_seconds), self._longest)]

    def _piece(self, samples: Samples) -> Piece:
        limit = {"max_new_tokens": _most_new(num_tokens(num_frames(len(samples))))}
        params = SamplingParams.of(**{**limit, **self._sampling})
        return Piece(self._prompt(samples), params, len(samples) / SAMPLE_RATE)

    def _prompt(self, samples: Samples) -> list[dict[str, Any]]:
        sound = {"type": "audio", "audio": (samples, SAMPLE_RATE)}
        user = {"role": "user", "content": [sound, {"type": "text", "text": QUESTION}]}
        return [user] if self._hint is None else [{"role": "system", "content": self._hint}, user]


def _most_new(tokens: int) -> int:
    return 2 * tokens + _MORE_TOKENS


def cut(samples: Samples, longest: int) -> list[Samples]:
    """Parts of at most `longest` samples, (S,) float32 each, which make up the whole.

    What is too long is cut in the quietest 0.2 s between half and all of the length that is allowed; no part lasts
    less than a second, or than half of `longest`, unless all of it does.
    """
    parts, begin, least = [], 0, _LEAST_S * SAMPLE_RATE
    while len(samples) - begin > longest:
        first = begin + longest // 2
        end = _quietest(samples, first, max(first, min(begin + longest, len(samples) - least)))
        parts.append(samples[begin:end])
        begin = end
    return [*parts, samples[begin:]]


def _quietest(samples: Samples, first: int, last: int) -> int:
    """The middle of the quietest stretch between two places, to 10 ms."""
    frames = samples[first:last]
    frames = frames[: len(frames) // HOP * HOP].reshape(-1, HOP)
    width = round(_QUIET_S * SAMPLE_RATE / HOP)
    if len(frames) <= width:
        return last
    energy = np.concatenate([[0.0], np.cumsum(np.square(frames, dtype=np.float64).sum(1))])
    return first + (int(np.argmin(energy[width:] - energy[:-width])) + width // 2) * HOP


class JoinedText:
    """Texts of pieces in one line: whatever spaces and line ends there are, one space stands between two words.

    Attributes:
        text: so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._space = False

    def push(self, text: str) -> str:
        """Adds some text of a piece, and returns what is new; a space waits for what follows."""
        words = " ".join(text.split())
        if not words:
            self._space |= bool(text)
            return ""
        new = f" {words}" if self.text and (self._space or text[0].isspace()) else words
        self._space = text[-1].isspace()
        self.text += new
        return new

    def end_piece(self) -> None:
        """The next text is of another piece."""
        self._space = True


def transcribe_all(
    transcriber: Transcriber,
    runtime: Runtime,
    sounds: Iterable[Sound],
    *,
    batch_size: int,
    keep_going: bool = False,
    on_piece: Callable[[float], None] = lambda _: None,
) -> Iterator[Transcript]:
    """The transcripts of sounds, one after the other; pieces are computed side by side.

    Args:
        transcriber: says how the model is asked.
        runtime: of its model.
        sounds: opened when it is their turn.
        batch_size: pieces side by side at most.
        keep_going: a sound that cannot be read gets a transcript with the error.
        on_piece: told the seconds of each piece that has been transcribed.

    Raises:
        MediaError: a sound cannot be read.
    """
    model, tokenizer = transcriber.model, transcriber.tokenizer
    # Of each piece that is under way its seconds, and whether it is the last of its sound.
    pending: deque[tuple[float, bool]] = deque()

    def pieces() -> Iterator[tuple[Piece | MediaError, bool]]:
        for sound in sounds:
            try:
                parts = transcriber.pieces(sound)
            except MediaError as error:
                if not keep_going:
                    raise
                yield error, True
            else:
                yield from ((part, part is parts[-1]) for part in parts)

    def inputs() -> Iterator[EngineInput]:
        rest = pieces()
        while group := list(islice(rest, batch_size)):
            prompts = [(part.prompt, part.params) for part, _ in group if isinstance(part, Piece)]
            prepared = iter(runtime.prepare(model, tokenizer, prompts, [""] * len(prompts), keep_going=True))
            for part, last in group:
                pending.append((part.seconds if isinstance(part, Piece) else 0.0, last))
                yield next(prepared) if isinstance(part, Piece) else EngineInput([], SamplingParams(), error=part)

    text, seconds, wrong = JoinedText(), 0.0, None
    options = {"slots": batch_size, "capacity": transcriber.capacity}
    for reply in runtime.answer(model, tokenizer, inputs(), keep_going=keep_going, **options):
        length, last = pending.popleft()
        on_piece(length)
        text.push(reply.text)
        text.end_piece()
        seconds, wrong = seconds + length, wrong or reply.error
        if last:
            yield Transcript(text.text, seconds, wrong)
            text, seconds, wrong = JoinedText(), 0.0, None


def transcripts(
    transcriber: Transcriber, runtime: Runtime, sounds: Sequence[Sound], *, progress: bool | None, **options: Any
) -> Iterator[Transcript]:
    """As `transcribe_all`, with a bar; `progress` None shows it in a terminal, after a second."""
    if progress is False or not sounds:
        yield from transcribe_all(transcriber, runtime, sounds, **options)
        return
    seconds, started = 0.0, time.perf_counter()
    for sound in sounds:
        with suppress(MediaError):  # told when it is its turn
            seconds += audio_seconds(sound)
    with progress_bar("listening", seconds, unit="percent", visible=bool(progress), always=bool(progress)) as bar:

        def on_piece(length: float) -> None:
            if not progress and time.perf_counter() - started > 1:
                bar.show()
            bar.advance(length)

        yield from transcribe_all(transcriber, runtime, sounds, on_piece=on_piece, **options)
