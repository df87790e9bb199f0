"""The endpoints: each reads a request, takes a place, and answers in OpenAI's form."""

import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from muomni.errors import GrammarError, UserError
from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.preprocess import EngineInput
from muomni.infer.sampling import PENALTIES, SamplingParams
from muomni.serve import messages, schema, sse
from muomni.serve.disconnect import ByteStream, DisconnectedError, unless_left
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError, api_error
from muomni.serve.logprobs import ReplyLogprobs
from muomni.serve.metrics import Metrics
from muomni.serve.replies import Answer, Head
from muomni.serve.responses import ResponseReply, of_input, prompt_of
from muomni.serve.settings import ServerSettings
from muomni.serve.speech import Spoken, chat_format, encoded, first_of, spoken_pieces, text_and_format
from muomni.serve.tools import template_tools
from muomni.serve.transcriptions import Transcription, read_form

T = TypeVar("T")
log = logging.getLogger("muomni.serve")
# Bodies from this size on are parsed in the pool: parsing holds up the event loop.
_LARGE_BODY = 64 << 10
# What of a key that is not known may stand in a header.
_NAME, _NAME_LENGTH, _MOST_NAMES = re.compile(r"[\w.-]+", re.ASCII), 64, 20
_HTTP_ERRORS = {
    404: ("there is no such endpoint", "not_found"),
    405: ("this endpoint has no such method", "wrong_method"),
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", *PENALTIES, "logit_bias", "seed", "stop")


class Endpoints:
    """The handlers of one server.

    Args:
        engine: answers.
        settings: of the server.
        metrics: of the server.
        created: when the model was made, in seconds of Unix time.
    """

    def __init__(self, engine: ServingEngine, settings: ServerSettings, metrics: Metrics, created: int) -> None:
        self._engine = engine
        self._settings = settings
        self._created = created
        self._metrics = metrics

    async def health(self, _: Request) -> Response:
        """`GET /health`: 200 while requests are taken and answered, else 503; needs no key."""
        state = self._engine.state
        if state in ("idle", "ok"):
            return JSONResponse({"status": state})
        return ApiError(503, f"the server is {state}", kind="unavailable_error", code=state).response()

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def on_error(self, _: Request, error: Exception) -> Response:
        """What becomes of a request that failed before its answer began."""
        if isinstance(error, DisconnectedError | ClientDisconnect):
            return Response(status_code=499)
        if isinstance(error, HTTPException):
            message, code = _HTTP_ERRORS.get(error.status_code, (error.detail, "invalid_request"))
            headers = dict(error.headers or {})
            return ApiError(error.status_code, message, code=code, headers=headers).response()
        told = api_error(error)
        if told.status == 500:
            log.error("a request failed", exc_info=error)
        self._metrics.refused(told.code or told.kind)
        return told.response()

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        """`GET /v1/models/{id}`."""
        self._check_model(request.path_params["model"])
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        with ExitStack() as stack:
            stack.enter_context(self._engine.place())
            asked = await self._read(request, schema.ChatRequest)
            has_tools = self._engine.tokenizer.chat_template.has_tools
            if asked.offered and not has_tools:
                raise ApiError(400, messages.NO_TOOLS, param="tools", code="unsupported_value")
            normalize = partial(messages.normalize, asked.messages, self._settings.max_media, has_tools=has_tools)
            prompt = await self._aside(request, normalize)
            limit = asked.max_completion_tokens or asked.max_tokens
            spoken = self._spoken(asked, stack)
            return await self._answer(request, stack, asked, prompt, limit, "chat", spoken)

    async def speech(self, request: Request) -> Response:
        """`POST /v1/audio/speech`: a text is spoken; wav and pcm come as they are made, other formats at the end."""
        with ExitStack() as stack:
            stack.enter_context(self._engine.speaking_place())
            asked = await self._read(request, schema.SpeechRequest)
            ignored = self._ignored(asked)
            self._check_model(asked.model)
            text, form = await text_and_format(asked)
            speech = self._engine.speech(asked.voice_name, asked.seed)
            stack.callback(speech.close)
            sounds = spoken_pieces(self._engine, speech, text, paced=form.codec is None)
            # The first sound is made before the status is sent: what cannot be spoken is an error.
            first = await unless_left(request.receive, first_of(sounds))
            encoder = form.encoder(speech.sample_rate)
            headers = {"x-sample-rate": str(form.sample_rate), **_named(ignored)}
            held = stack.pop_all()
            pieces = encoded(first, sounds, encoder, as_events=asked.stream_format == "sse")
            media_type = sse.MEDIA_TYPE if asked.stream_format == "sse" else form.media_type
            return ByteStream(pieces, held.close, headers, media_type)

    async def transcriptions(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`: what is said in a sound, which is the file of a form."""
        with ExitStack() as stack:
            stack.enter_context(self._engine.place())
            asked = await read_form(request, self._settings.max_upload)
            headers = _named(self._ignored(asked))
            self._check_model(asked.model)
            answer = Transcription(self._engine, self._metrics)
            stack.callback(answer.close)
            longest = self._settings.max_transcribed_s
            beginning = answer.begin(asked.file, longest, asked.prompt, asked.temperature)
            await unless_left(request.receive, beginning)
            if asked.stream:
                held = stack.pop_all()
                return ByteStream(_or_error(sse.event(each) async for each in answer.events()), held.close, headers)
            result = await unless_left(request.receive, answer.whole())
            if asked.response_format == "text":
                return PlainTextResponse(f"{result['text']}\n", headers=headers)
            return JSONResponse(result, headers=headers)

    async def voices(self, _: Request) -> Response:
        """`GET /v1/audio/voices`."""
        return JSONResponse({"voices": list(self._engine.voices)})

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`: continues a text as it stands."""
        with ExitStack() as stack:
            stack.enter_context(self._engine.place())
            asked = await self._read(request, schema.CompletionRequest)
            return await self._answer(request, stack, asked, asked.prompt, asked.max_tokens, "text")

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: ids of a text."""
        with self._engine.place():
            asked = await self._read(request, schema.TokenizeRequest)
            ids = await self._engine.in_pool(partial(self._engine.tokenizer.encode, asked.prompt))
            return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._engine.context})

    async def responses(self, request: Request) -> Response:
        """`POST /v1/responses`: a chat in the form of OpenAI's Responses API; nothing is stored."""
        with ExitStack() as stack:
            stack.enter_context(self._engine.place())
            asked = await self._read(request, schema.ResponsesRequest)
            head = Head("response", self._settings.model_name)
            headers = {"x-request-id": head.id, **_named(self._ignored(asked))}
            self._check_model(asked.model)
            has_tools = self._engine.tokenizer.chat_template.has_tools
            tools = template_tools(asked.calls.offered)
            if tools and not has_tools:
                raise ApiError(400, messages.NO_TOOLS, param="tools", code="unsupported_value")
            make = partial(prompt_of, asked, self._settings.max_media, has_tools=has_tools)
            prompt = await self._aside(request, make)
            try:
                params = self._params(asked, asked.max_output_tokens)
                prepared, streams = await self._begin(request, stack, asked, prompt, params, raw=False, tools=tools)
            except GrammarError as error:
                param = "tools" if tools else "text.format"
                raise ApiError(400, str(error), param=param, code="invalid_value") from None
            except UserError as error:
                raise of_input(error) from None
            parser = asked.calls.parser() if tools else None
            reply = ResponseReply(head, asked, prepared.params, streams[0], self._metrics, parser)
            if not asked.stream:
                return JSONResponse(await unless_left(request.receive, reply.whole()), headers=headers)
            held = stack.pop_all()
            return ByteStream(reply.events(), held.close, headers)

    async def _answer(
        self,
        request: Request,
        stack: ExitStack,
        asked: "schema.ChatRequest | schema.CompletionRequest",
        prompt: Any,
        limit: int | None,
        kind: str,
        spoken: Spoken | None = None,
    ) -> Response:
        """Submits a request and answers it, whole or as a stream; what `stack` holds is given back at the end."""
        head = Head(kind, self._settings.model_name)
        ignored = self._ignored(asked)
        self._check_model(asked.model)
        if asked.n > self._settings.max_choices:
            raise ApiError(400, f"n: at most {self._settings.max_choices}", param="n", code="invalid_value")
        tools = template_tools(asked.offered) if isinstance(asked, schema.ChatRequest) else None
        try:
            params = self._params(asked, limit)
            prepared, streams = await self._begin(
                request, stack, asked, prompt, params, raw=kind == "text", tools=tools
            )
        except GrammarError as error:
            param = "tools" if tools else "response_format"
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        parsers = [asked.parser() for _ in streams] if isinstance(asked, schema.ChatRequest) and tools else []
        logprobs = []
        if params.logprobs is not None:
            tokenizer = self._engine.tokenizer
            logprobs = [ReplyLogprobs(tokenizer, stream.request, chat=kind == "chat") for stream in streams]
        answer = Answer(head, streams, self._engine.media_tokens(prepared), self._metrics, spoken, parsers, logprobs)
        headers = {"x-request-id": head.id, **_named(ignored)}
        if not asked.stream:
            whole = await unless_left(request.receive, answer.whole())
            response = partial(JSONResponse, whole, headers=headers)
            rendered = await self._engine.in_pool(response) if logprobs else response()
            return rendered
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        # From here on the response holds the place and the streams.
        held = stack.pop_all()
        events = _or_error(_events(answer, include_usage))
        return ByteStream(events, held.close, headers, is_last=lambda: answer.done)

    async def _begin(
        self,
        request: Request,
        stack: ExitStack,
        asked: schema.AnyTextRequest,
        prompt: Any,
        params: SamplingParams,
        *,
        raw: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[EngineInput, list[AsyncTextStream]]:
        """Submits a request once for each choice; `stack` ends the streams."""
        alone = asked.deterministic
        work = self._engine.prepare(prompt, params, raw=raw, alone=alone, tools=tools)
        prepared = await unless_left(request.receive, work)
        options = {"batch_invariant": asked.deterministic, "speculate": asked.speculate}
        streams = []
        for row in range(asked.n):
            stream = self._engine.stream(prepared, row=row, **options)
            stack.callback(stream.close)
            streams.append(stream)
        return prepared, streams

    async def _read(self, request: Request, kind: type[schema.T]) -> schema.T:
        body = bytearray()  # to join many pieces at once would hold up the event loop
        async for piece in request.stream():
            body += piece
        request.state.is_large = len(body) >= _LARGE_BODY
        return await self._aside(request, partial(schema.parse, kind, body))

    async def _aside(self, request: Request, function: "partial[T]") -> T:
        """Calls what takes long where the body is large, then in the pool."""
        return await self._engine.in_pool(function) if request.state.is_large else function()

    def _params(self, asked: schema.AnyTextRequest, limit: int | None) -> SamplingParams:
        """The settings of a request; what it leaves out is as everywhere else."""
        given = {key: value for key in _SAMPLING if (value := getattr(asked, key)) is not None}
        if asked.most_likely is not None:
            given["logprobs"] = asked.most_likely
        most = self._settings.max_tokens
        return SamplingParams.of(max_new_tokens=min(limit or most, most), grammar=asked.grammar, **given)

    def _spoken(self, asked: schema.ChatRequest, stack: ExitStack) -> Spoken | None:
        """What speaks the reply, where audio is asked for; `stack` gives it back."""
        if "audio" not in (asked.modalities or ()):
            return None
        form = chat_format(asked)
        if asked.n != 1:
            raise ApiError(400, "n: one reply is spoken", param="n", code="invalid_value")
        if asked.offered:
            raise ApiError(400, "tools: a spoken reply calls none", param="tools", code="unsupported_value")
        if asked.logprobs:
            raise ApiError(400, "logprobs: a spoken reply has none", param="logprobs", code="unsupported_value")
        stack.enter_context(self._engine.speaking_place())
        speech = self._engine.speech(asked.audio.voice_name if asked.audio is not None else None, asked.seed)
        stack.callback(speech.close)
        return Spoken(self._engine, speech, form)

    def _ignored(self, asked: schema.AnyRequest) -> list[str]:
        ignored = asked.ignored()
        if ignored and self._settings.strict:
            name = ignored[0][:_NAME_LENGTH]
            raise ApiError(400, f"unknown key: {name}", param=name, code="unknown_parameter")
        return ignored

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._settings.model_name:
            message = f"there is no model {name[:80]!r}; this server has {self._settings.model_name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _model(self) -> dict[str, Any]:
        config = self._engine.model.config
        inputs = ["text", *(["image"] if config.vision else []), *(["audio"] if config.audio else [])]
        outputs = ["text", *(["audio"] if config.talker else [])]
        architecture = {"input_modalities": inputs, "output_modalities": outputs}
        entry = {"id": self._settings.model_name, "object": "model", "created": self._created, "owned_by": "muomni"}
        return {**entry, "max_model_len": self._engine.context, "architecture": architecture}


def _named(ignored: Sequence[str]) -> dict[str, str]:
    names = [key for key in ignored if len(key) <= _NAME_LENGTH and _NAME.fullmatch(key)][:_MOST_NAMES]
    return {"x-ignored-parameters": ", ".join(names)} if names else {}


async def _events(answer: Answer, include_usage: bool) -> AsyncIterator[bytes]:
    """The events of a reply, those that are ready at a time joined."""
    async for chunks in answer.chunks(include_usage=include_usage):
        yield b"".join([*map(sse.event, chunks), *([sse.DONE] if answer.done else [])])


async def _or_error(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Events; an error after the first byte is one event, then the end."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        told = api_error(error)
        if told.status == 500:
            log.exception("a reply failed")
        yield sse.event(told.body)
