"""Requests as OpenAI's clients send them; what would change a reply and is not supported is refused."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from muomni.data.media.media_ref import MediaContent
from muomni.infer.sampling import MOST_BIASES, MOST_LOGPROBS
from muomni.serve.errors import ApiError
from muomni.serve.response_format import JsonSchema, ResponseFormat
from muomni.serve.tools import ToolRequest

# Accepted without an effect: they say who asks, or how a provider may store and route.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# Would change the reply. Their neutral values, which clients send by default, are let through.
_NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "echo": (None, False),
    "best_of": (None, 1),
    "function_call": (None, "none"),
    "functions": (None, []),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}


# What `messages.normalize` takes, for the OpenAPI document.
_TEXT: dict[str, Any] = {"type": "string"}


def _part(kind: str, **more: Any) -> dict[str, Any]:
    properties = {"type": {"const": kind}, **more}
    return {"type": "object", "properties": properties, "required": [*properties]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


_PARTS = [
    _part("text", text=_TEXT),
    _part("image_url", image_url=_object(url={"type": "string", "pattern": "^data:image/"})),
    _part("input_audio", input_audio=_object(data=_TEXT)),
]
_MESSAGE = _object(
    role={"enum": ["developer", "system", "user", "assistant", "tool"]},
    content={"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": _PARTS}}, {"type": "null"}]},
)


class StreamOptions(BaseModel):
    """Of a streamed reply.

    Attributes:
        include_usage: a last chunk counts the tokens.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class _Request(BaseModel):
    """What requests for text have in common.

    Attributes:
        model: one of `/v1/models`; None takes the server's.
        temperature, top_p, top_k, min_p, repetition_penalty, frequency_penalty, presence_penalty, seed: see
            `SamplingParams`, whose defaults None takes.
        logit_bias: the same; token ids as texts.
        stop: a text, or up to 16 of them, each of 1 to 1,000 characters.
        n: replies to this prompt, each with its own draws.
        deterministic: compute alone, so that not one bit depends on other requests.
        speculate: draft tokens from the text so far; needs temperature 0.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASES)] | None = None
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    deterministic: bool = False
    speculate: bool = False

    # Keys besides the fields whose neutral values are accepted.
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _NOT_SUPPORTED

    @property
    def grammar(self) -> dict[str, Any] | str | None:
        """What the reply has to follow, or None; see `SamplingParams.grammar`."""
        return None

    @property
    def most_likely(self) -> int | None:
        """Tokens that are told at each place, or None; see `SamplingParams.logprobs`."""
        return None

    def ignored(self) -> list[str]:
        """Keys that had no effect and are not known to be harmless.

        Raises:
            ApiError: a key would change the reply and is not supported.
        """
        unknown = []
        for key, value in (self.model_extra or {}).items():
            if key in self.unsupported:
                if value not in self.unsupported[key]:
                    raise ApiError(
                        400, f"{key} is not supported by this server", param=key, code="unsupported_parameter"
                    )
            elif key not in _WITHOUT_EFFECT:
                unknown.append(key)
        return unknown


Voice = str | Mapping[str, str] | None


def _voice_name(voice: Voice) -> str | None:
    return voice.get("id") if isinstance(voice, Mapping) else voice


class AudioOptions(BaseModel):
    """How a reply is spoken.

    Attributes:
        voice: its name, or `{"id": name}`; None takes the model's first.
        format: pcm16 (24 kHz) or wav in streams, else also mp3, flac and opus.
    """

    voice: Voice = None
    format: str = "wav"

    @property
    def voice_name(self) -> str | None:
        """The name."""
        return _voice_name(self.voice)


class ChatRequest(_Request, ToolRequest):
    """`POST /v1/chat/completions`.

    Attributes:
        messages: see `messages.normalize`.
        modalities: what the reply is made of.
        audio: with `modalities` that hold "audio".
        max_completion_tokens: of the reply; comes before the older `max_tokens`.
        response_format: what the reply has to be; None is any text.
        tools, tool_choice, parallel_tool_calls: see `ToolRequest`.
        logprobs: each token of the reply is told with its logprob.
        top_logprobs: and with so many of the most likely ones at its place.
    """

    messages: list[Annotated[dict[str, Any], WithJsonSchema(_MESSAGE)]]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def grammar(self) -> dict[str, Any] | str | None:
        """See `_Request`.

        Raises:
            ApiError: the reply would have to be a call, and of another form.
        """
        form = None if self.response_format is None else self.response_format.grammar
        if form is not None and self.offered:
            message = 'response_format: not beside tools, unless tool_choice is "none"'
            raise ApiError(400, message, param="response_format", code="unsupported_value")
        return self.call_grammar if form is None else form

    @property
    def most_likely(self) -> int | None:
        """See `_Request`.

        Raises:
            ApiError: there is a number, but no logprobs are wanted.
        """
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs true", param="top_logprobs", code="invalid_value")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """`POST /v1/completions`: a text is continued, without the turns of a chat.

    Attributes:
        prompt: the text.
        max_tokens: of the reply.
        logprobs: each token is told with its logprob, and with so many of the most likely ones.
    """

    prompt: str
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = None

    @property
    def most_likely(self) -> int | None:
        """See `_Request`."""
        return self.logprobs


class TextFormat(JsonSchema):
    """As `ResponseFormat`, with the schema's keys beside the type.

    Attributes:
        type: text, json_object, or json_schema.
    """

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = "response"


class TextOptions(BaseModel):
    """What the text of a response is.

    Attributes:
        format: None is any text.
    """

    format: TextFormat | None = None


_ITEM = _object(
    role={"enum": ["developer", "system", "user", "assistant"]},
    content={
        "anyOf": [
            _TEXT,
            {
                "type": "array",
                "items": {
                    "anyOf": [
                        _part("input_text", text=_TEXT),
                        _part("output_text", text=_TEXT),
                        _part("input_image", image_url={"type": "string", "pattern": "^data:image/"}),
                    ]
                },
            },
        ]
    },
)


class ResponsesRequest(_Request):
    """`POST /v1/responses`.

    Attributes:
        input: a text, or items: messages with their role, whose content is a text or a list of parts.
        instructions: go before the input, as the system's message.
        max_output_tokens: of the reply.
        text: what the reply has to be.
        tools: functions that may be called; types that are not known are left out.
        tool_choice, parallel_tool_calls: see `ToolRequest`.
        metadata: comes back with the response.
    """

    input: str | list[Annotated[dict[str, Any], WithJsonSchema(_ITEM)]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    n: Literal[1] = 1

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "top_logprobs": (None, 0),
        "background": (None, False),
        "context_management": (None, []),
        "include": (None, []),
        "max_tool_calls": (None,),
        "moderation": (None,),
        "prompt": (None,),
        "reasoning": (None, {}, {"effort": None}, {"effort": "none"}),
        "truncation": (None, "disabled"),
    }

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools that are functions."""
        return [tool for tool in self.tools or () if tool.get("type") == "function"]

    @cached_property
    def calls(self) -> ToolRequest:
        """Its tools as those of a chat.

        Raises:
            ApiError: one is wrong, or the choice is.
        """
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "function":
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        tools = [{"type": "function", "function": function} for function in self.functions]
        fields = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}
        try:
            return validated(ToolRequest, fields)
        except ApiError as error:
            param = error.param or ("tool_choice" if "tool_choice" in str(error) else "tools")
            raise ApiError(400, str(error), param=param, code=error.code) from None

    @property
    def grammar(self) -> dict[str, Any] | str | None:
        """See `_Request`.

        Raises:
            ApiError: the reply would have to be a call, and of another form.
        """
        form = TextFormat() if self.text is None or self.text.format is None else self.text.format
        schema = ResponseFormat(type=form.type, json_schema=form if form.type == "json_schema" else None).grammar
        if schema is not None and self.calls.offered:
            message = 'text.format: not beside tools, unless tool_choice is "none"'
            raise ApiError(400, message, param="text.format", code="unsupported_value")
        return self.calls.call_grammar if schema is None else schema

    @property
    def text_format(self) -> dict[str, Any]:
        """As a response says it."""
        form = TextFormat() if self.text is None or self.text.format is None else self.text.format
        keys = {"type"} if form.type != "json_schema" else None
        return form.model_dump(include=keys, by_alias=True)

    def ignored(self) -> list[str]:
        """See `_Request`; tools that are left out are named, too."""
        extra = self.model_extra or {}
        for key in ("previous_response_id", "conversation", "store"):
            if extra.get(key):
                message = f"{key}: no response is stored here; send all of the conversation as input"
                raise ApiError(400, message, param=key, code="unsupported_parameter")
        unknown = [key for key in super().ignored() if key not in ("previous_response_id", "conversation")]
        return [*unknown, *(["tools"] if len(self.functions) < len(self.tools or ()) else [])]


class SpeechRequest(BaseModel):
    """`POST /v1/audio/speech`.

    Attributes:
        input: the text.
        voice: see `AudioOptions`.
        response_format: mp3, wav, pcm, flac or opus.
        stream_format: the sound itself, or events that hold it in base64.
        speed: 1.
        seed: the same seed gives the same speech.
    """

    model_config = ConfigDict(extra="allow")

    input: Annotated[str, Field(min_length=1, max_length=4096)]
    model: str | None = None
    voice: Voice = None
    response_format: str = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @property
    def voice_name(self) -> str | None:
        """The name."""
        return _voice_name(self.voice)

    def ignored(self) -> list[str]:
        """Keys that had no effect.

        Raises:
            ApiError: a key would change the speech and is not supported.
        """
        extra = self.model_extra or {}
        if self.speed != 1:
            raise ApiError(400, "speed: must be 1", param="speed", code="unsupported_parameter")
        if extra.get("instructions"):
            raise ApiError(400, "instructions are not supported", param="instructions", code="unsupported_parameter")
        return sorted(extra.keys() - {"instructions"})


class TokenizeRequest(BaseModel):
    """`POST /tokenize`.

    Attributes:
        prompt: a text.
    """

    prompt: str


class TranscriptionRequest(BaseModel):
    """`POST /v1/audio/transcriptions`, a form.

    Attributes:
        file: the sound.
        language: a hint without effect: a model hears the languages that it has learnt.
        prompt: the subject, or spellings; the model's system message.
        temperature: 0 where it is left out.
        response_format: json or text; the others need times, which no model gives.
        stream: as events.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    file: Annotated[MediaContent, WithJsonSchema({"type": "string", "format": "binary"})]
    model: str | None = None
    language: Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")] | None = None
    prompt: str | None = None
    temperature: float | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False

    def ignored(self) -> list[str]:
        """Keys that had no effect.

        Raises:
            ApiError: a key would change the transcript and is not supported.
        """
        if self.response_format not in ("json", "text"):
            message = f"response_format = {self.response_format!r}: this model gives no times; take json or text"
            raise ApiError(400, message, param="response_format", code="unsupported_value")
        extra = {"language": self.language} if self.language is not None else {}
        for key, value in (self.model_extra or {}).items():
            if key in _NOT_HEARD and value != _NOT_HEARD[key]:
                message = f"{key} is not supported by this server"
                raise ApiError(400, message, param=key, code="unsupported_parameter")
            if key not in _NOT_HEARD:
                extra[key] = value
        return sorted(extra)


# Would change a transcript, with the one value that does not.
_NOT_HEARD = {
    "chunking_strategy": "auto",
    "include": None,
    "keywords": None,
    "known_speaker_names": None,
    "known_speaker_references": None,
    "timestamp_granularities": None,
}


# What JSON makes of each value takes a hundred bytes and more, however short it is.
_MOST_VALUES = 1 << 18
# Wrong values beyond which none is named.
_MOST_ERRORS = 1000
AnyTextRequest = ChatRequest | CompletionRequest | ResponsesRequest
AnyRequest = AnyTextRequest | SpeechRequest | TranscriptionRequest
T = TypeVar("T", bound=BaseModel)


def parse(kind: type[T], body: bytes | bytearray) -> T:
    """A request from its JSON.

    Raises:
        ApiError: it is no JSON, or a key has a wrong value; names the first.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ApiError(400, f"the request holds more than {_MOST_VALUES:,} values", code="invalid_value")
    return _told(partial(kind.model_validate_json, body))


def validated(kind: type[T], fields: Mapping[str, Any]) -> T:
    """A request from the fields of a form.

    Raises:
        ApiError: one is missing or has a wrong value; names the first.
    """
    return _told(partial(kind.model_validate, fields))


def _told(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValidationError as error:
        if error.error_count() > _MOST_ERRORS:  # to describe one of them describes all
            message = f"{error.error_count():,} values have a wrong type"
            raise ApiError(400, message, code="invalid_value") from None
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Behind the key stand numbers, and names of types that a value may have.
        param, *rest = map(str, first["loc"] or ("",))
        param += "".join(f"[{part}]" for part in rest if part.isdecimal())
        where = f"{param}: " if param else ""
        raise ApiError(400, f"{where}{first['msg']}", param=param or None, code="invalid_value") from None
