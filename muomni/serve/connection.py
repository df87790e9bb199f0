"""One connection of HTTP/1.1, as uvicorn speaks it, with an end for clients who say nothing."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from muomni.serve.errors import ApiError

_BROKEN = ApiError(400, "this is no HTTP request that can be read", code="invalid_request")


class Connection(H11Protocol):
    """Closes where no request's head comes in time, or an answer is not read; tells errors as JSON.

    Attributes:
        head_s: seconds for a request's head, from the connection's begin or the last answer's end.
        unread_s: seconds after which a client that reads nothing of what is sent is gone; one that plays what it reads
            may pause.
    """

    head_s = 20.0
    unread_s = 120.0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """From here on a head has to come."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        self._stop_waiting()
        self._reads()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next head has to come, also where the rest of a body is still thrown away."""
        self._wait_for_head()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The connection belongs to the WebSocket now."""
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is told in the shape of all errors, and a request that it belongs to is over."""
        self.logger.debug(msg)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = _BROKEN.response()
            head = h11.Response(status_code=400, headers=[*response.raw_headers, (b"connection", b"close")])
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Much is unread."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        self._reads()
        super().resume_writing()

    def _reads(self) -> None:
        if self._unread is not None:
            self._unread.cancel()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(self.head_s, self._close_if_silent)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
