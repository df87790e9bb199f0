"""Replies: tokens become text as they come, until an end token, a stop text or the length."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from muomni.errors import EngineError
from muomni.infer.engine.engine import Engine
from muomni.infer.engine.scheduler import FinishReason, Request
from muomni.infer.logprobs import TokenLogprob
from muomni.infer.preprocess import EngineInput, end_ids
from muomni.infer.speculative.drafts import DraftProposer

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


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
        logprobs: of each token, where the setting `logprobs` wants them; else None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | Literal["error"]
    timing: Timing
    audio: Tensor | None = None
    sample_rate: int | None = None
    error: str | None = None
    speech: "SpeechTiming | None" = None
    logprobs: tuple[TokenLogprob, ...] | None = None

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


class StopTexts:
    """Finds the first stop text to be completed, however the text is cut into pieces.

    What may be the beginning of a stop text is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to belong to the reply. After `found`, nothing more does."""
        if self.found:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = next(
            (n for n in range(self._longest(text), 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stops)), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held back: no stop text can complete any more."""
        held, self._held = self._held, ""
        return held

    def _longest(self, text: str) -> int:
        return min(len(text), max((len(stop) for stop in self.stops), default=1) - 1)


class ReplyStream(Iterator[Chunk]):
    """Iterates over the chunks of one reply; `reply` is there once they are all read."""

    def __init__(self) -> None:
        self._reply: Reply | None = None
        self._chunks = self._run()

    def __next__(self) -> Chunk:
        return next(self._chunks)

    @property
    @abstractmethod
    def text(self) -> str:
        """The text of the chunks so far."""

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            RuntimeError: chunks are still to come.
        """
        if self._reply is None:
            raise RuntimeError("the reply is not finished: read the stream to its end, or call `finish`")
        return self._reply

    def finish(self) -> Reply:
        """Reads what is left and returns the reply."""
        for _ in self:
            pass
        return self.reply

    @abstractmethod
    def close(self) -> None:
        """Stops early; there will be no `reply`."""

    @abstractmethod
    def _run(self) -> Generator[Chunk]:
        """The chunks."""


class TextStream(ReplyStream):
    """A reply of text.

    Args:
        engine: computes the tokens.
        tokenizer: turns ids into text. Where the configuration names no end tokens, the tokenizer's end the reply;
            their text is not part of it.
        prompt: without an error.
        batch_invariant, speculate: see `Request`.

    Raises:
        PromptError: the prompt is empty, or does not fit the engine's slots; raised here, before the first chunk.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: "Tokenizer",
        prompt: EngineInput,
        *,
        batch_invariant: bool = False,
        speculate: bool | DraftProposer = False,
    ) -> None:
        self._engine = engine
        self._text = ReplyText(tokenizer, prompt.params.stops)
        self._said: list[str] = []
        self._whole = False
        super().__init__()
        self._request = request_of(
            engine, tokenizer, prompt, self._text, batch_invariant=batch_invariant, speculate=speculate
        )
        engine.submit(self._request)

    @property
    def text(self) -> str:
        """The text of the pieces so far."""
        return "".join(self._said)

    @property
    def finished(self) -> bool:
        """Whether all tokens have been computed, whatever has been read."""
        return self._request.finished

    def finish(self) -> Reply:
        """Reads what is left and returns the reply."""
        request = self._request
        while not request.finished:  # text that nobody waits for is made at once when all tokens are there
            self._engine.wait(request, len(request.tokens))
        self._whole = request.on_token is None
        for _ in self:
            pass
        if request.cancelled:
            raise EngineError("the reply was cancelled before its end")
        return self.reply

    def close(self) -> None:
        """Stops early; there will be no `reply`."""
        self._engine.cancel(self._request)
        self._chunks.close()

    def __del__(self) -> None:
        request = getattr(self, "_request", None)
        if request is not None and not request.finished:
            self._engine.cancel(request)

    def _run(self) -> Generator[Chunk]:
        request, text = self._request, self._text
        seen = shown = 0
        while True:
            self._engine.wait(request, seen)
            finished, tokens = request.finished, request.tokens  # in this order: nothing follows once it is set
            if self._whole and request.reason is not None and seen < len(tokens):
                said = text.all_of([token for token in tokens[seen:] if token not in request.ends])
                self._reply = self._made(said)
                self._said.append(said)
                yield Chunk(said, tuple(tokens[shown:]))
                return
            for token in islice(tokens, seen, None):
                seen += 1
                last = finished and seen == len(tokens) and request.reason is not None
                if request.on_token is None and token not in request.ends:
                    text.push(token)
                said = text.take(seen)
                if last:
                    said += text.rest()
                    self._reply = self._made(said)
                if said or last:
                    self._said.append(said)
                    yield Chunk(said, tuple(tokens[shown:seen]))
                    shown = seen
            if not finished:
                continue
            if request.error is not None:
                raise request.error
            if self._reply is None and request.reason is not None:  # the last token came before the word of its end
                said = text.rest()
                self._reply = self._made(said)
                self._said.append(said)
                yield Chunk(said, tuple(tokens[shown:]))
            return

    def _made(self, rest: str) -> Reply:
        return reply_of(self._request, self.text + rest, stopped=self._text.stopped)


def request_of(
    engine: Engine, tokenizer: "Tokenizer", prompt: EngineInput, text: "ReplyText", **options: Any
) -> Request:
    """The request for a reply of text, not submitted yet.

    Args:
        engine: will compute it.
        tokenizer: has the tokens that end it.
        prompt: without an error.
        text: follows the tokens where a stop text may end them; else the reader makes it of them.
        options: other fields of `Request`.
    """
    request = Request(
        prompt=list(prompt.ids),
        params=prompt.params,
        limit=prompt.limit,
        ends=frozenset() if prompt.params.ignore_eos else frozenset(end_ids(engine.model, tokenizer)),
        media=prompt.media,
        constraint=None if prompt.grammar is None else prompt.grammar.begin(),
        **options,
    )
    if prompt.params.stops:
        request.on_token = text.follow(request.tokens)
    return request


def reply_of(request: Request, text: str, *, stopped: bool) -> Reply:
    """The reply of a request that has ended.

    Args:
        request: has ended without an error.
        text: all of it.
        stopped: a stop text ended it.
    """
    reason: FinishReason = "stop" if request.reason == "stop" or stopped else "length"
    timing = Timing(
        len(request.prompt), len(request.tokens), request.first - request.began, request.last - request.first
    )
    wanted = request.params.logprobs is not None
    logprobs = tuple(request.logprobs[: len(request.tokens)]) if wanted else None
    return Reply(text, tuple(request.tokens), reason, timing, logprobs=logprobs)


class ReplyText:
    """The text that each token makes known, up to a stop text."""

    def __init__(self, tokenizer: "Tokenizer", stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._begin()

    def _begin(self) -> None:
        self._decoder = self._tokenizer.stream()
        self._stop = StopTexts(self._stops)
        self._made: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._stop.found

    def push(self, token: int) -> bool:
        """Takes a token in; True where its text completes a stop text."""
        self._made.append(self._stop.push(self._decoder.push([token])))
        return self._stop.found

    def follow(self, reply: Sequence[int]) -> Callable[[int], bool]:
        """The `on_token` of the request whose tokens so far `reply` is: `push`, also after one was interrupted."""
        whole = True

        def push(token: int) -> bool:
            nonlocal whole
            if not whole or len(self._made) != len(reply):
                self._begin()
                for earlier in reply:
                    self.push(earlier)
            whole = False
            stopped = self.push(token)
            whole = True
            return stopped

        return push

    def take(self, count: int) -> str:
        """What the last of `count` tokens made known; nothing for an end token, which is never pushed."""
        return self._made[count - 1] if count <= len(self._made) else ""

    def more(self, tokens: Sequence[int]) -> str:
        """The text of tokens that need not be told apart, in the place of `push` and `take`."""
        return self._stop.push(self._decoder.push(tokens))

    def all_of(self, tokens: Sequence[int]) -> str:
        """The text of the last tokens, where none has to be told apart; nothing may follow."""
        return self.more(tokens) + self.rest()

    def rest(self) -> str:
        """What was held back until the end."""
        return self._stop.push(self._decoder.finish()) + self._stop.finish()
