"""What endpoints answer, for the OpenAPI document and whoever checks answers against it."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorObject(BaseModel):
    """What was wrong: `type` is its kind, `param` the key of the request that is meant, `code` its short name."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 2xx, and the last event of a stream that failed."""

    error: ErrorObject


class HealthAnswer(BaseModel):
    """The server takes requests."""

    status: Literal["idle", "ok"]


class Architecture(BaseModel):
    """What goes in and out."""

    input_modalities: list[str]
    output_modalities: list[str]


class ModelAnswer(BaseModel):
    """A model; `max_model_len` is its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    architecture: Architecture


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class VoicesAnswer(BaseModel):
    """Names of the voices."""

    voices: list[str]


class TokenizeAnswer(BaseModel):
    """The ids of a text, how many they are, and how many the model takes."""

    tokens: list[int]
    count: int
    max_model_len: int


class UsageAnswer(BaseModel):
    """Tokens of the prompt and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class AudioAnswer(BaseModel):
    """A reply that is spoken: base64, and its text."""

    id: str
    data: str
    expires_at: int
    transcript: str


class CalledFunction(BaseModel):
    """A function and its arguments, an object in JSON."""

    name: str
    arguments: str


class CallAnswer(BaseModel):
    """A tool that the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class MessageAnswer(BaseModel):
    """A reply; without `content` where it is spoken or only calls tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    audio: AudioAnswer | None = None
    tool_calls: list[CallAnswer] | None = None


class TokenAnswer(BaseModel):
    """A token, the natural logarithm of its probability, and its bytes, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobAnswer(TokenAnswer):
    """A token of a reply, with the most likely ones at its place."""

    top_logprobs: list[TokenAnswer]


class ChatLogprobs(BaseModel):
    """Of the tokens of a chat's reply."""

    content: list[TokenLogprobAnswer]
    refusal: None


class TextLogprobs(BaseModel):
    """Of the tokens of a continuation; offsets are characters of its text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChoiceAnswer(BaseModel):
    """One of the replies to a request."""

    index: int
    finish_reason: str


class ChatChoice(ChoiceAnswer):
    """Of a chat."""

    message: MessageAnswer
    logprobs: ChatLogprobs | None


class TextChoice(ChoiceAnswer):
    """Of a plain continuation."""

    text: str
    logprobs: TextLogprobs | None


class _Completion(BaseModel):
    id: str
    created: int
    model: str
    usage: UsageAnswer


class ChatAnswer(_Completion):
    """A reply that is not streamed; a stream has chunks of the same shape with `delta`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(_Completion):
    """A continuation that is not streamed."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class HeardTokens(BaseModel):
    """Tokens of a sound and of the text around it."""

    audio_tokens: int
    text_tokens: int


class TranscriptionUsage(BaseModel):
    """Tokens of all pieces of a sound, and of what was written down."""

    type: Literal["tokens"]
    input_tokens: int
    input_token_details: HeardTokens
    output_tokens: int
    total_tokens: int


class TranscriptionAnswer(BaseModel):
    """What is said in a sound."""

    text: str
    usage: TranscriptionUsage


class OutputText(BaseModel):
    """A text of a response."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputCall(BaseModel):
    """A call of a function: an item of a response."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Literal["completed"]


class OutputMessage(BaseModel):
    """A message: an item of a response."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class ResponsesUsage(BaseModel):
    """Tokens of the input and of the reply."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponsesAnswer(BaseModel):
    """A response that is not streamed; the last event of a stream holds the same."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    incomplete_details: dict[str, str] | None
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponsesUsage
