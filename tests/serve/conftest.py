"""A server with a nano model that sees and hears, in a thread, on a free port."""

import asyncio
import copy
import io
import threading
import wave
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import numpy as np
import pytest
import uvicorn
from openai import OpenAI
from starlette.testclient import TestClient

from muomni import MuOmni
from muomni.serve.app import make_app
from muomni.serve.engine import ServingEngine
from muomni.serve.server import bind, uvicorn_config
from muomni.serve.settings import ServerSettings

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result, from an event loop of its own in a thread: a browser of another test may have one in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@dataclass
class Running:
    """A server that runs; `http` is a client of it."""

    url: str
    engine: ServingEngine
    http: httpx2.Client

    def chat(self, content: Any = "Hello there!", **more: Any) -> httpx2.Response:
        """One chat of one message."""
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **more}
        return self.http.post("/v1/chat/completions", json=body)


@contextmanager
def running(model: MuOmni, **settings: Any) -> Iterator[Running]:
    """Serves until the block ends."""
    chosen = ServerSettings(port=0, model_name="nano", drain_s=1.0, **settings)
    listening = bind(chosen)
    engine = ServingEngine(model, chosen)
    config = uvicorn_config(make_app(engine, chosen))
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        assert ready.wait(30)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx2.Client(base_url=url, timeout=30) as http:
            yield Running(url, engine, http)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def server(omni: MuOmni) -> Iterator[Running]:
    """The server that most tests share."""
    with running(omni, slots=4, max_waiting=8) as server:
        yield server


@pytest.fixture
def serving(omni: MuOmni) -> Callable[..., Any]:
    """A server with settings of its own: `with serving(keys=("k",)) as server`."""
    return lambda **settings: running(omni, **{"slots": 2, **settings})


@pytest.fixture(scope="session")
def in_process(omni: MuOmni) -> Iterator[Callable[..., TestClient]]:
    """A client that calls an application of its own without a socket: `in_process(keys=("k",))`."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            chosen = ServerSettings(**{"model_name": "nano", "slots": 2, **settings})
            app = make_app(ServingEngine(omni, chosen), chosen)
            # Entered, so that all its requests have one event loop, as a server's have.
            return stack.enter_context(TestClient(app, "http://localhost", raise_server_exceptions=False))

        yield make


@pytest.fixture(scope="session")
def wav() -> bytes:
    """Half a second of a tone, 16 kHz."""
    samples = (np.sin(np.arange(8000) * 0.2) * 20000).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    """The official client."""
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def alone(omni: MuOmni) -> MuOmni:
    """The same weights without a server."""
    return copy.deepcopy(omni)


@pytest.fixture(scope="module")
def local(in_process: Callable[..., TestClient]) -> TestClient:
    """A server without a socket."""
    return in_process()
