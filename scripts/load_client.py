"""A client for load: raw connections that are kept, and as little computing for each event as counting needs.

The client shares the machine with the server that it measures, so what it costs is taken from the server.
"""

import asyncio
import json
import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

TEXT = re.compile(rb'"(?:content|transcript)":"[^"]')
SOUND = re.compile(rb'"data":"([^"]*)"')
TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_END = b"0\r\n\r\n"
_KEPT = 1000  # bytes of a reply that are looked at again: the last events
RATE = 48_000  # bytes of a second of pcm16


@dataclass
class Seen:
    """One request as its client saw it; times by `perf_counter`.

    Attributes:
        began: when it was sent.
        status: of HTTP; 0 while there is none, and for a client who left.
        headers: of the answer.
        body: of the answer, where it was kept.
        first, last: the first and the newest text.
        gaps: seconds between reads that held text.
        sound: the first sound.
        sound_s: seconds of sound.
        starved_s: the longest that playback, begun with the first sound, had nothing to play.
        tokens: of the whole reply.
        ended: when it was complete, or 0; a stream that ends with an error is not.
    """

    began: float
    status: int = 0
    headers: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    sound: float = 0.0
    sound_s: float = 0.0
    starved_s: float = 0.0
    tokens: int = 0
    ended: float = 0.0


class Connection(asyncio.Protocol):
    """Asks one thing after the other over one connection, which is opened again when it was closed.

    Args:
        address: host and port.
        keep: keep the bodies.
    """

    def __init__(self, address: tuple[str, int], *, keep: bool = False) -> None:
        self._address, self._keep = address, keep
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(
        self, path: str, content: bytes | None = None, *, leave_after: int | None = None, kind: str = "application/json"
    ) -> Seen:
        """One request; GET without content.

        Args:
            path: of the URL.
            content: of the body.
            leave_after: the client is gone after so many reads of the answer.
            kind: content type.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, *self._address)
        assert self._transport is not None
        self._seen = seen = Seen(perf_counter())
        self._leave_after, self._speaks = leave_after, content is not None and b'"audio"' in content
        self._left, self._tail, self._length = b"", b"", -1
        self._done = loop.create_future()
        method = "GET" if content is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if content is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        self._transport.write(head.encode() + b"\r\n" + (content or b""))
        try:
            if leave_after == 0:
                self.close()
            else:
                await self._done
        finally:
            self._done = None
        return seen

    def close(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._finish()

    def data_received(self, data: bytes) -> None:
        now, seen = perf_counter(), self._seen
        if self._done is None:
            return
        if not seen.status:
            head, blank, data = (self._left + data).partition(b"\r\n\r\n")
            if not blank:
                self._left = head
                return
            self._left, seen.status, seen.headers = b"", int(head[9:12]), head.lower()
            length = re.search(rb"content-length: (\d+)", seen.headers)
            self._length = int(length[1]) if length else -1
        if self._keep:
            seen.body += data
        if TEXT.search(data):
            if seen.first:
                seen.gaps.append(now - seen.last)
            else:
                seen.first = now
            seen.last = now
        if self._speaks:
            self._hear(data, now)
        self._tail = (self._tail + data)[-_KEPT:]
        if self._leave_after is not None:
            self._leave_after -= 1
            if not self._leave_after:
                seen.status = 0
                self.close()
                self._finish()
                return
        self._length -= len(data) if self._length >= 0 else 0
        if self._length == 0 or self._tail.endswith(_END):
            whole = b"text/event-stream" not in seen.headers or b"data: [DONE]" in self._tail
            seen.ended = now if whole else 0.0
            tokens = TOKENS.search(self._tail)
            seen.tokens = int(tokens[1]) if tokens else 0
            if b"connection: close" in seen.headers:
                self.close()
            self._finish()

    def _hear(self, data: bytes, now: float) -> None:
        """Notes sound; an event may come in several reads."""
        whole, _, self._left = (self._left + data).rpartition(b"\n\n")
        for piece in SOUND.findall(whole):
            seen = self._seen
            seen.sound = seen.sound or now
            seen.starved_s = max(seen.starved_s, now - seen.sound - seen.sound_s)
            seen.sound_s += len(piece) * 0.75 / RATE

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def chat(messages: list[dict[str, Any]], **more: Any) -> bytes:
    """The body of a chat that is streamed, with its count of tokens."""
    settings = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"messages": messages, **settings, **more}).encode()
