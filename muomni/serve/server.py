"""The server process: uvicorn around the application, and how it ends."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from muomni.api.model import MuOmni
from muomni.errors import UserError
from muomni.serve.app import make_app
from muomni.serve.connection import Connection
from muomni.serve.engine import ServingEngine
from muomni.serve.settings import ServerSettings

# Seconds that connections get after the last reply before they are closed.
_CLOSE_S = 2


def bind(settings: ServerSettings) -> socket.socket:
    """The listening socket.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named asyncio switches Nagle's algorithm off: without, a second small write waits 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except (OSError, ValueError, TypeError) as error:  # the last two: names that cannot be a host's
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{settings.host!a}:{settings.port}: cannot listen there: {reason} (--host, --port)") from None
    return listening


class _Server(uvicorn.Server):
    """Ends open replies before uvicorn waits for their connections, which it does before anything else is told."""

    def __init__(
        self, config: uvicorn.Config, engine: ServingEngine, drain_s: float, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._engine = engine
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the server in order, with exit code 0; without signals it ends by `should_exit`."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """The first signal drains, the second ends at once."""
        if self._draining is not None:
            self.force_exit = self.should_exit = True
            return
        self._engine.stop_admitting()
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._engine.drain(self._drain_s)
        self.should_exit = True


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """How the application is served: one kind of connection, nothing logged of requests, frames not inflated."""
    return uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws_max_size=16 << 20,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_CLOSE_S,
        server_header=False,
        proxy_headers=False,
    )


def serve(model: MuOmni, settings: ServerSettings, listening: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serves a model until a signal ends it; open replies get `drain_s` seconds.

    Args:
        model: nothing else uses it meanwhile.
        settings: of the server.
        listening: see `bind`.
        on_ready: called with the server's URL once it answers.
    """
    host, port = listening.getsockname()[:2]
    engine = ServingEngine(model, settings)
    config = uvicorn_config(make_app(engine, settings))
    name = f"[{host}]" if ":" in host else host
    server = _Server(config, engine, settings.drain_s, lambda: on_ready(f"http://{name}:{port}"))

    server.run(sockets=[listening])
