"""The ASGI application: routes, and the life of the engine behind them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from muomni.errors import MuOmniError
from muomni.serve.disconnect import DisconnectedError
from muomni.serve.endpoints import Endpoints
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError
from muomni.serve.guard import Guard
from muomni.serve.page_files import Page
from muomni.serve.settings import ServerSettings


def make_app(engine: ServingEngine, settings: ServerSettings) -> Starlette:
    """The application of a server.

    Args:
        engine: answers; ended with the application.
        settings: of the server.
    """
    endpoints = Endpoints(engine, settings, int(time.time()))
    page = Page()
    routes = [
        Route("/health", endpoints.health),
        Route("/v1/health", endpoints.health),
        Route("/metrics", endpoints.metrics),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{model:path}", endpoints.one_model),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/audio/speech", endpoints.speech, methods=["POST"]),
        Route("/v1/audio/voices", endpoints.voices),
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/tokenize", endpoints.tokenize, methods=["POST"]),
        Mount("/", page),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(engine.watch())
        try:
            await engine.warm_up()
            yield
        finally:
            watching.cancel()
            await engine.drain(0)

    errors = (HTTPException, ApiError, MuOmniError, DisconnectedError, Exception)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, settings=settings, open_paths={"/health", "/v1/health", *page.paths})],
        exception_handlers=dict.fromkeys(errors, endpoints.on_error),
        lifespan=lifespan,
    )
