"""Work that ends when the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muomni.serve import sse

T = TypeVar("T")


class DisconnectedError(Exception):
    """Nobody waits for the answer any more."""


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects; its body has been read.

    Raises:
        DisconnectedError: it did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise DisconnectedError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ByteStream(Response):
    """A response whose bytes come one piece after the other, server-sent events unless it is said otherwise.

    Starlette's own response does not close its iterator when the client leaves before the first piece.

    Args:
        pieces: of the body.
        close: called before the end is sent, and however the response ends; more than once.
        headers: of the response.
        media_type: of the body.
        is_last: whether nothing follows the piece that just came; it then ends the body itself.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: dict[str, str],
        media_type: str = sse.MEDIA_TYPE,
        is_last: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pieces = pieces
        self._close = close
        self._is_last = is_last
        super().__init__(headers={**sse.HEADERS, **headers}, media_type=media_type)
        del self.headers["content-length"]

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Sends the pieces until they end or the client leaves."""
        try:
            await unless_left(receive, self._send(send))
        except DisconnectedError:
            pass
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ended = False
        async for data in self._pieces:
            ended = self._is_last()
            if ended:  # whoever has the end may ask for the place again
                self._close()
            await send({"type": "http.response.body", "body": data, "more_body": not ended})
        if not ended:
            self._close()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
