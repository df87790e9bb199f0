"""The ASGI application: routes, and the life of the engine behind them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from muomni.errors import MuOmniError
from muomni.serve import answers, schema
from muomni.serve.disconnect import DisconnectedError
from muomni.serve.endpoints import Endpoints
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError
from muomni.serve.guard import Guard
from muomni.serve.operations import JSON, Operation, document
from muomni.serve.page_files import Page
from muomni.serve.realtime.endpoint import Realtime
from muomni.serve.settings import ServerSettings
from muomni.serve.speech import FORMATS
from muomni.serve.sse import MEDIA_TYPE as EVENTS


def make_app(engine: ServingEngine, settings: ServerSettings) -> Starlette:
    """The application of a server.

    Args:
        engine: answers; ended with the application.
        settings: of the server.
    """
    metrics = engine.metrics
    endpoints = Endpoints(engine, settings, metrics, int(time.time()))
    page = Page()
    operations = _operations(endpoints)
    described = document(operations)

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    routes: list[BaseRoute] = [*(each.route for each in operations), Route("/openapi.json", openapi)]
    # One by one: a mount would answer for endpoints that have no such method.
    routes += [Route(path, page, methods=["GET"]) for path in sorted(page.paths)]
    routes.append(WebSocketRoute("/v1/realtime", Realtime(engine, settings).serve))
    open_paths = {each.path for each in operations if not each.needs_key} | page.paths
    uploads = {each.path for each in operations if each.is_upload}

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(engine.watch())
        try:
            await engine.warm_up()
            yield
        finally:
            watching.cancel()
            await engine.drain(0)

    errors = (HTTPException, ApiError, MuOmniError, DisconnectedError, ClientDisconnect, Exception)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, settings=settings, open_paths=open_paths, uploads=uploads)],
        exception_handlers=dict.fromkeys(errors, endpoints.on_error),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _operations(endpoints: Endpoints) -> list[Operation]:
    """All endpoints over HTTP."""
    sounds = (*(form.media_type for form in FORMATS.values()), EVENTS)
    return [
        Operation("/health", endpoints.health, answer=answers.HealthAnswer, needs_key=False),
        Operation("/v1/health", endpoints.health, answer=answers.HealthAnswer, needs_key=False),
        Operation("/metrics", endpoints.metrics, media_types=("text/plain",)),
        Operation("/v1/models", endpoints.models, answer=answers.ModelsAnswer),
        Operation("/v1/models/{model:path}", endpoints.one_model, answer=answers.ModelAnswer),
        Operation(
            "/v1/chat/completions", endpoints.chat, "POST", schema.ChatRequest, answers.ChatAnswer, (JSON, EVENTS)
        ),
        Operation("/v1/audio/speech", endpoints.speech, "POST", schema.SpeechRequest, media_types=sounds),
        Operation(
            "/v1/audio/transcriptions",
            endpoints.transcriptions,
            "POST",
            schema.TranscriptionRequest,
            answers.TranscriptionAnswer,
            (JSON, "text/plain", EVENTS),
            is_upload=True,
        ),
        Operation("/v1/audio/voices", endpoints.voices, answer=answers.VoicesAnswer),
        Operation(
            "/v1/completions",
            endpoints.completions,
            "POST",
            schema.CompletionRequest,
            answers.CompletionAnswer,
            (JSON, EVENTS),
        ),
        Operation(
            "/v1/responses",
            endpoints.responses,
            "POST",
            schema.ResponsesRequest,
            answers.ResponsesAnswer,
            (JSON, EVENTS),
        ),
        Operation("/tokenize", endpoints.tokenize, "POST", schema.TokenizeRequest, answers.TokenizeAnswer),
    ]
