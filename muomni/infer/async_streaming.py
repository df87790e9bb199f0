"""The async twin of `TextStream`: one reply in an event loop, computed by the engine's thread."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from muomni.errors import EngineError
from muomni.infer.engine.engine import Engine
from muomni.infer.preprocess import EngineInput
from muomni.infer.speculative.drafts import DraftProposer
from muomni.infer.streaming import Chunk, Reply, ReplyText, reply_of, request_of

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


class AsyncTextStream:
    """A reply of text, for one reader; no thread waits for it.

    The request is submitted at once, so that what is wrong with it, or a full queue, is raised here. Whoever makes a
    stream calls `close` in the end, also after an error; it may come early, and twice.

    Args:
        engine: its thread runs (`Engine.start`).
        tokenizer: turns ids into text.
        prompt: without an error.
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
        *,
        batch_invariant: bool = False,
        speculate: bool | DraftProposer = False,
        row: int = 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._engine = engine
        self._text = ReplyText(tokenizer, prompt.params.stops)
        self._wake = asyncio.Event()
        self._reply: Reply | None = None

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        options = {"batch_invariant": batch_invariant, "speculate": speculate, "row": row, "on_update": wake}
        self.request = request_of(engine, tokenizer, prompt, self._text, **options)
        engine.submit(self.request)

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
        request, seen, shown, said = self.request, 0, 0, ""
        while not request.finished or seen < len(request.tokens):
            self._wake.clear()
            finished, count = request.finished, len(request.tokens)  # in this order: nothing follows once it is set
            if seen == count and not finished:
                await self._wake.wait()
                continue
            text = "".join(self._take(number) for number in range(seen, count))
            seen = count
            said += text
            if text:
                yield Chunk(text, tuple(request.tokens[shown:seen]))
                shown = seen
        if request.error is not None:
            raise request.error
        if request.reason is None:
            raise EngineError("the reply was cancelled before its end")
        rest = self._text.rest()
        self._reply = reply_of(request, said + rest, stopped=self._text.stopped)
        yield Chunk(rest, tuple(request.tokens[shown:]))

    def close(self) -> None:
        """Ends the request, if it still runs; its slot is free before the next step."""
        self._engine.cancel(self.request)

    def _take(self, number: int) -> str:
        token = self.request.tokens[number]
        if self.request.on_token is None and token not in self.request.ends:
            self._text.push(token)
        return self._text.take(number + 1)
