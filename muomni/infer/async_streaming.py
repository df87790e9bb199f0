"""The async twin of `TextStream`: one reply in an event loop, computed by the engine's thread."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from muomni.errors import EngineError
from muomni.infer.engine.engine import Engine
from muomni.infer.preprocess import EngineInput
from muomni.infer.speculative.drafts import DraftProposer
from muomni.infer.streaming import Chunk, Reply, ReplyText, reply_of, request_of

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


# Seconds between two chunks of a reply, at least, but for the first and the last: what chunks cost on their way to the
# readers is taken from those who compute. All streams together give 400 a second, whatever their number.
_LEAST_S = 0.01
_CHUNK_S = 0.0025
_MOST_S = 0.1


class Pulse:
    """Wakes the streams of one event loop together: once for all that a step gave, and not more often than it shows.

    Made inside the loop. The engine's thread calls `update`, everything else happens in the loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._urgent: deque[asyncio.Event] = deque()
        self._due: deque[asyncio.Event] = deque()
        self._called = False  # the loop is about to look at both
        self._beating = False  # the loop will look at what is due by itself

    def update(self, event: asyncio.Event, *, urgent: bool) -> None:
        """Sets an event of the loop: soon, or, where it is urgent, at once."""
        (self._urgent if urgent else self._due).append(event)
        if (urgent or not self._beating) and not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._called = False  # before it looks: what comes from here on calls again
        while self._urgent:
            self._urgent.popleft().set()
        if not self._beating:
            self._beat()

    def _beat(self) -> None:
        streams = set()
        while self._due:
            streams.add(self._due.popleft())
        for event in streams:
            event.set()
        self._beating = bool(streams)
        if streams:
            self._loop.call_later(min(max(_LEAST_S, len(streams) * _CHUNK_S), _MOST_S), self._rest)

    def _rest(self) -> None:
        self._beating = False
        if self._due:
            self._beat()


class AsyncTextStream:
    """A reply of text, for one reader; no thread waits for it.

    The request is submitted at once, so that what is wrong with it, or a full queue, is raised here. Whoever makes a
    stream calls `close` in the end, also after an error; it may come early, and twice.

    Args:
        engine: its thread runs (`Engine.start`).
        tokenizer: turns ids into text.
        prompt: without an error.
        pulse: wakes it, with other streams of the loop.
        batch_invariant, speculate, row: see `Request`.

    Attributes:
        request: its tokens so far, and how it ended.

    Raises:
        PromptError, BusyError, EngineError: see `Engine.submit`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: "Tokenizer",
        prompt: EngineInput,
        pulse: Pulse,
        *,
        batch_invariant: bool = False,
        speculate: bool | DraftProposer = False,
        row: int = 0,
    ) -> None:
        self._engine = engine
        self._text = ReplyText(tokenizer, prompt.params.stops)
        self._wake = asyncio.Event()
        self._begun = False
        self._reply: Reply | None = None

        def wake() -> None:
            pulse.update(self._wake, urgent=self.request.finished or not self._begun)

        options = {"batch_invariant": batch_invariant, "speculate": speculate, "row": row, "on_update": wake}
        self.request = request_of(engine, tokenizer, prompt, self._text, **options)
        engine.submit(self.request)

    @property
    def ended(self) -> bool:
        """Whether no chunk follows the newest one."""
        return self._reply is not None

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            RuntimeError: chunks are still to come.
        """
        if self._reply is None:
            raise RuntimeError("the reply is not finished: read the stream to its end")
        return self._reply

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunks: what became known since the one before; the last may be empty.

        Raises:
            EngineError: the stream was closed before its end.
            what the request failed with.
        """
        request, seen, shown, said, text = self.request, 0, 0, "", ""
        while not request.finished or seen < len(request.tokens):
            self._wake.clear()
            finished, count = request.finished, len(request.tokens)  # in this order: nothing follows once it is set
            if seen == count and not finished:
                await self._wake.wait()
                continue
            text = self._take(seen, count)
            seen = count
            said += text
            if request.reason is not None and finished:  # the end belongs to the last chunk
                break
            if text:
                self._begun = True
                yield Chunk(text, tuple(request.tokens[shown:seen]))
                shown, text = seen, ""
        if request.error is not None:
            raise request.error
        if request.reason is None:
            raise EngineError("the reply was cancelled before its end")
        rest = self._text.rest()
        self._reply = reply_of(request, said + rest, stopped=self._text.stopped)
        yield Chunk(text + rest, tuple(request.tokens[shown:]))

    def close(self) -> None:
        """Ends the request, if it still runs; its slot is free before the next step."""
        self._engine.cancel(self.request)

    def _take(self, seen: int, count: int) -> str:
        request = self.request
        if request.on_token is None:
            return self._text.more([token for token in request.tokens[seen:count] if token not in request.ends])
        return "".join(self._text.take(number + 1) for number in range(seen, count))
