"""What a client may send, and how it is told that an event was wrong."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from muomni.serve.errors import ApiError, api_error
from muomni.serve.realtime.audio_buffer import MAX_AUDIO
from muomni.serve.realtime.conversation import GivenItem, ItemReference
from muomni.serve.realtime.session import Limit, Modalities, Refused, ResponseAudio, Strict, Text

_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


class Event(Strict):
    """Any event.

    Attributes:
        event_id: errors name it.
    """

    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(Event):
    """Changes what it names of the session."""

    type: Literal["session.update"]
    session: dict[str, Any]


class AudioAppend(Event):
    """More sound."""

    type: Literal["input_audio_buffer.append"]
    audio: Annotated[str, Field(max_length=MAX_AUDIO)]


class AudioCommit(Event):
    """The sound so far is an item."""

    type: Literal["input_audio_buffer.commit"]


class AudioClear(Event):
    """The sound so far is thrown away."""

    type: Literal["input_audio_buffer.clear"]


class ItemCreate(Event):
    """A new item, at the end or behind `previous_item_id`; "root" is the beginning."""

    type: Literal["conversation.item.create"]
    previous_item_id: str | None = None
    item: GivenItem


class ItemRetrieve(Event):
    """Wants to see an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(Event):
    """Takes an item out."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ItemTruncate(Event):
    """Only so much of a spoken item was played."""

    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: int
    audio_end_ms: int = Field(ge=0)


class ResponseOptions(Strict):
    """What is different in one response; None takes the session's.

    Attributes:
        output_modalities, instructions, audio, max_output_tokens: see `Session`.
        input: items in the place of the conversation's.
        conversation: "none" leaves the response out of the conversation.
        metadata: given back with the response.
    """

    output_modalities: Modalities | None = None
    instructions: Text | None = None
    audio: ResponseAudio | None = None
    max_output_tokens: Limit | None = None
    input: Annotated[list[GivenItem | ItemReference], Field(max_length=256)] | None = None
    conversation: Literal["auto", "none"] = "auto"
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    tools: Refused = None
    tool_choice: Refused = None
    parallel_tool_calls: bool | None = None
    prompt: Refused = None
    reasoning: Refused = None


class ResponseCreate(Event):
    """Wants a response."""

    type: Literal["response.create"]
    response: ResponseOptions = ResponseOptions()


class ResponseCancel(Event):
    """Ends a response; without an id the conversation's."""

    type: Literal["response.cancel"]
    response_id: str | None = None


class OutputClear(Event):
    """Means something with WebRTC only."""

    type: Literal["output_audio_buffer.clear"]


_KINDS: dict[str, type[Event]] = {
    kind.model_fields["type"].annotation.__args__[0]: kind  # type: ignore[union-attr]
    for kind in (
        SessionUpdate,
        AudioAppend,
        AudioCommit,
        AudioClear,
        ItemCreate,
        ItemRetrieve,
        ItemDelete,
        ItemTruncate,
        ResponseCreate,
        ResponseCancel,
        OutputClear,
    )
}


class EventError(Exception):
    """An event that is wrong.

    Args:
        error: what is wrong.
        event_id: of the event, if it had one.
    """

    def __init__(self, error: Exception, event_id: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.event_id = event_id


def parsed(text: str) -> Event:
    """An event from its JSON.

    Raises:
        EventError: it is none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise EventError(ApiError(400, "the event is no JSON", code="invalid_json")) from None
    if not isinstance(data, dict):
        raise EventError(ApiError(400, "an event must be a JSON object", code="invalid_event"))
    name, event_id = data.get("type"), data.get("event_id")
    event_id = event_id[:512] if isinstance(event_id, str) else None
    if not isinstance(name, str) or name not in _KINDS:
        message = f"there is no event {name[:64]!r}" if isinstance(name, str) else "an event needs its type"
        raise EventError(ApiError(400, message, param="type", code="invalid_event"), event_id)
    try:
        return _KINDS[name].model_validate(data)
    except ValidationError as error:
        raise EventError(error, event_id) from None


def error_fields(error: Exception, event_id: str | None) -> dict[str, Any]:
    """The `error` of an error event."""
    told = _told(error)
    fields = {"type": told.kind, "code": told.code, "message": str(told), "param": told.param}
    return {**fields, "event_id": event_id}


def _told(error: Exception) -> ApiError:
    if not isinstance(error, ValidationError):
        return api_error(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _place(first["loc"])
    return ApiError(
        400, f"{param}: {first['msg']}" if param else first["msg"], param=param, code=_CODES.get(first["type"])
    )


def _place(loc: Sequence[Any]) -> str | None:
    """The key that is meant; pydantic names also which of several forms it tried."""
    parts = [
        str(part) for part in loc if not (isinstance(part, str) and (part[:1].isupper() or part in ("int", "str")))
    ]
    return ".".join(parts) or None
