"""Replies in OpenAI's form, whole and as chunks, for chats and for plain continuations."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.streaming import Chunk, Reply
from muomni.serve.logprobs import ReplyLogprobs
from muomni.serve.metrics import Metrics
from muomni.serve.speech import Spoken
from muomni.serve.tools import CallParser


@dataclass(frozen=True)
class Head:
    """What all chunks of a reply share.

    Attributes:
        kind: "chat" or "text".
        model: the name that is served.
        created: when, in seconds of Unix time.
        arrived: when, by the monotonic clock.
        id: without the prefix of its kind.
    """

    kind: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    arrived: float = field(default_factory=time.monotonic)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def of(self, choices: list[dict[str, Any]], *, chunk: bool, **more: Any) -> dict[str, Any]:
        """The object around choices."""
        chat = self.kind == "chat"
        name = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}", "object": name, "created": self.created}
        return {**head, "model": self.model, "choices": choices, **more}


class Answer:
    """The replies to one request.

    Args:
        head: of its chunks.
        streams: one for each choice.
        media_tokens: tokens of the prompt's pictures and sounds, for its usage.
        metrics: measure the streams.
        spoken: speaks the one reply, or None.
        parsers: find the calls of each stream, where there are tools.
        logprobs: of each stream, where they are wanted.

    Attributes:
        done: the newest of `chunks` are the last.
    """

    def __init__(
        self,
        head: Head,
        streams: Sequence[AsyncTextStream],
        media_tokens: dict[str, int],
        metrics: Metrics,
        spoken: Spoken | None = None,
        parsers: Sequence[CallParser] = (),
        logprobs: Sequence[ReplyLogprobs] = (),
    ) -> None:
        self._parsers = parsers
        self.done = False
        self._logprobs = logprobs
        self._spoken = spoken
        self._head = head
        self._streams = streams
        self._media_tokens = media_tokens
        self._chunks = [metrics.measured(stream, head.arrived) for stream in streams]

    async def whole(self) -> dict[str, Any]:
        """The object that a client gets that does not stream.

        Raises:
            what a stream raises.
        """
        for chunks in self._chunks:
            async for _ in chunks:
                pass
        if self._spoken is not None:
            await self._spoken.speak(self._streams[0].reply.text)
        # With logprobs there may be twenty entries to each token.
        choices = await asyncio.to_thread(self._choices) if self._logprobs else self._choices()
        return self._head.of(choices, chunk=False, usage=self.usage())

    async def chunks(self, *, include_usage: bool) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a stream, the choices as they come; those that are known at the same time together.

        Raises:
            what a stream raises.
        """
        # With `include_usage` every chunk has the key, and only the last one a value.
        more: dict[str, Any] = {"usage": None} if include_usage else {}
        if self._spoken is not None:
            held = [self._chunk(0, {"role": "assistant", "content": None}, None, more)]
            async for delta in self._spoken.deltas(self._chunks[0], self._audio_id):
                yield [*held, self._chunk(0, {"audio": delta}, None, more)]
                held = []
            held.append(self._chunk(0, {}, self._streams[0].reply.finish_reason, more))
        else:
            held = []
            if self._head.kind == "chat":
                start = {"role": "assistant", "content": ""}
                held = [self._chunk(number, start, None, more) for number in range(len(self._streams))]
            async for number, text in _merged(self._chunks):
                if self._logprobs and text:
                    self._logprobs[number].push(text)
                held += [self._chunk(number, delta, None, more) for delta in self._deltas(number, text)]
                if text is None:
                    held.append(self._chunk(number, {}, self._reason(number), more))
                    continue
                if held and not self._streams[number].ended:  # else the chunk of its end follows at once
                    yield held
                    held = []
        if include_usage:
            held.append(self._head.of([], chunk=True, usage=self.usage()))
        self.done = True
        yield held

    def _deltas(self, number: int, text: str | None) -> list[dict[str, Any]]:
        """What a piece of a reply's text, or with None its end, adds to the message."""
        if not self._parsers:
            return [] if text is None else [{"content": text}]
        parser = self._parsers[number]
        first = len(parser.calls)
        pieces = [parser.finish()] if text is None else list(parser.push(text))
        calls = [{"index": index, **call} for index, call in enumerate(parser.calls[first:], first)]
        return [
            {"content": piece} if isinstance(piece, str) else {"tool_calls": [calls.pop(0)]}
            for piece in pieces
            if piece
        ]

    def _reason(self, number: int) -> str:
        """Why a reply has ended."""
        reason = self._streams[number].reply.finish_reason
        return "tool_calls" if reason == "stop" and self._parsers and self._parsers[number].calls else reason

    @property
    def _audio_id(self) -> str:
        return f"audio_{self._head.id}"

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompt, counted once, and of all replies."""
        requests = [stream.request for stream in self._streams]
        prompt, new = len(requests[0].prompt), sum(len(request.tokens) for request in requests)
        details = {"cached_tokens": max(requests[0].reused, 0), **self._media_tokens}
        counts = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
        return {**counts, "prompt_tokens_details": details}

    def _choices(self) -> list[dict[str, Any]]:
        return [self._choice(number, stream.reply) for number, stream in enumerate(self._streams)]

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        logprobs = self._logprobs[number].whole(reply.text) if self._logprobs else None
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if self._parsers:
            parser = self._parsers[number]
            content = "".join(piece for piece in parser.push(reply.text) if isinstance(piece, str)) + parser.finish()
            if parser.calls:
                message = {**message, "content": content or None, "tool_calls": parser.calls}
        end = {"index": number, "finish_reason": self._reason(number), "logprobs": logprobs}
        if self._spoken is not None:
            audio = self._spoken.as_part(self._audio_id, reply.text)
            return {**end, "message": {"role": "assistant", "content": None, "refusal": None, "audio": audio}}
        if self._head.kind == "chat":
            return {**end, "message": message}
        return {**end, "text": reply.text}

    def _chunk(self, number: int, delta: dict[str, Any], reason: str | None, more: dict[str, Any]) -> dict[str, Any]:
        logprobs = self._logprobs[number].take(last=reason is not None) if self._logprobs else None
        choice: dict[str, Any] = {"index": number, "finish_reason": reason, "logprobs": logprobs}
        if self._head.kind == "chat":
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return self._head.of([choice], chunk=True, **more)


async def _merged(streams: Sequence[AsyncIterator[Chunk]]) -> AsyncIterator[tuple[int, str | None]]:
    """Texts of several streams with their number, as they come; None once a stream has ended."""
    if len(streams) == 1:
        async for chunk in streams[0]:
            if chunk.text:
                yield 0, chunk.text
        yield 0, None
        return
    texts: asyncio.Queue[tuple[int, str | BaseException | None]] = asyncio.Queue()

    async def read(number: int) -> None:
        try:
            async for chunk in streams[number]:
                if chunk.text:
                    texts.put_nowait((number, chunk.text))
            texts.put_nowait((number, None))
        except Exception as error:  # noqa: BLE001 - raised below, in the reader
            texts.put_nowait((number, error))

    readers = [asyncio.ensure_future(read(number)) for number in range(len(streams))]
    try:
        left = len(streams)
        while left:
            number, text = await texts.get()
            if isinstance(text, BaseException):
                raise text
            left -= text is None
            yield number, text
    finally:
        for reader in readers:
            reader.cancel()
