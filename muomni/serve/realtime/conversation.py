"""The items of a conversation: as clients send and see them, and as the prompt of the next response."""

import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from muomni.data.media.audio import Samples
from muomni.infer.speech import SaidWords
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.errors import ApiError
from muomni.serve.messages import add_turn, data_url
from muomni.serve.realtime.audio_buffer import decoded
from muomni.serve.realtime.session import MAX_TEXT, Strict, Text

Role = Literal["system", "user", "assistant"]
_ALLOWED = {
    "system": ("input_text",),
    "user": ("input_text", "input_audio", "input_image"),
    "assistant": ("output_text", "output_audio"),
}
_MOST_ITEMS = 2000
# Characters of all texts of a conversation.
_MOST_TEXT = 1 << 20


class GivenPart(Strict):
    """Part of an item that a client gives: a text, a sound of the session's format, or a picture as a data URL."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None


class GivenItem(Strict):
    """An item that a client gives: a message."""

    id: str | None = Field(default=None, min_length=1, max_length=64)
    object: Literal["realtime.item"] = "realtime.item"
    type: Literal["message"]
    status: Literal["completed", "incomplete", "in_progress"] = "completed"
    role: Role
    content: list[GivenPart] = Field(min_length=1, max_length=64)


class ItemReference(Strict):
    """An item of the conversation, by its id."""

    type: Literal["item_reference"]
    id: str


def new_id(kind: str) -> str:
    """An id that nothing else has."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


@dataclass
class Part:
    """Part of an item.

    Attributes:
        type: on the wire.
        text: written, or the transcript of what was spoken or heard.
        image: data URL of a picture.
        sound: (N,) float32 that was heard, at `SAMPLE_RATE`.
        said: when the words were said that were spoken, or None.
        sent_s: seconds of sound that the client has of it.
    """

    type: str
    text: str = ""
    image: str = ""
    sound: Samples | None = None
    said: SaidWords | None = None
    sent_s: float = 0.0

    @property
    def wire(self) -> dict[str, Any]:
        """As clients see it: without pictures and sounds, which would not fit an event."""
        if self.type.endswith("_text"):
            return {"type": self.type, "text": self.text}
        if self.type == "output_audio":
            return {"type": self.type, "transcript": self.text}
        if self.type == "input_audio":
            return {"type": self.type, "transcript": self.text or None}
        return {"type": self.type}

    @property
    def prompt(self) -> dict[str, Any]:
        """As the model's prompts take it."""
        if self.sound is not None:
            return {"type": "audio", "audio": (self.sound, SAMPLE_RATE)}
        if self.image:
            return {"type": "image_url", "image_url": {"url": self.image}}
        return {"type": "text", "text": self.text}

    @property
    def nbytes(self) -> int:
        """Of what it holds, about."""
        return len(self.text) + len(self.image) + (0 if self.sound is None else self.sound.nbytes)


@dataclass(eq=False)
class Item:
    """A message.

    Attributes:
        role: whose.
        content: its parts.
        status: "completed", "incomplete" where it was cut off, "in_progress" while it is made.
        id: of the item.
    """

    role: Role
    content: list[Part]
    status: str = "completed"
    id: str = field(default_factory=lambda: new_id("item"))

    @property
    def wire(self) -> dict[str, Any]:
        """As clients see it."""
        content = [part.wire for part in self.content]
        head = {"id": self.id, "object": "realtime.item", "type": "message", "status": self.status}
        return {**head, "role": self.role, "content": content}


def made(given: GivenItem, where: str) -> Item:
    """The item that a client means; its sounds are decoded.

    Raises:
        ApiError: a part does not belong there, or lacks its content.
    """
    parts = [_part(part, given.role, f"{where}.content[{n}]") for n, part in enumerate(given.content)]
    if sum(len(part.text) for part in parts) > MAX_TEXT:
        raise ApiError(400, f"{where}: longer than {MAX_TEXT} characters", param=where, code="string_above_max_length")
    return Item(given.role, parts, "completed", given.id or new_id("item"))


def _part(given: GivenPart, role: Role, where: str) -> Part:
    if given.type not in _ALLOWED[role]:
        message = f"{where}: parts of the {role} may be {', '.join(_ALLOWED[role])}"
        raise ApiError(400, message, param=f"{where}.type", code="invalid_value")
    if given.type.endswith("_text") and given.text is not None:
        return Part(given.type, given.text)
    if given.type == "output_audio" and given.transcript is not None:
        return Part(given.type, given.transcript)
    if given.type == "input_audio" and given.audio is not None:
        return Part(given.type, sound=decoded(given.audio, f"{where}.audio"))
    if given.type == "input_image" and given.image_url is not None:
        if given.image_url[:5].lower() != "data:":
            message = f"{where}: pictures are not fetched; send them as a data: URL (data:image/png;base64,...)"
            raise ApiError(400, message, param=f"{where}.image_url", code="invalid_image_url")
        return Part(given.type, image=data_url(given.image_url))
    raise ApiError(400, f"{where}: a part of type {given.type} needs its content", param=where, code="invalid_value")


class Conversation:
    """Items in order.

    Args:
        limit: bytes of all items together, at most.
    """

    def __init__(self, limit: int) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []
        self._limit = limit

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Adds an item.

        Args:
            item: a new one.
            after: id of the item before it, "root" for the beginning; None for the end.

        Returns:
            the id of the item before it, or None where it is the first.

        Raises:
            ApiError: there is no such item, or one with its id already, or no room.
        """
        place = len(self.items) if after is None else 0 if after == "root" else self._place(after) + 1
        if any(other.id == item.id for other in self.items):
            raise ApiError(400, f"item.id: there is an item {item.id!r} already", param="item.id", code="invalid_value")
        parts = [part for each in (*self.items, item) for part in each.content]
        full = sum(part.nbytes for part in parts) > self._limit or sum(len(part.text) for part in parts) > _MOST_TEXT
        if full or len(self.items) >= _MOST_ITEMS:
            message = "the conversation is full: delete items of it, or open a new session"
            raise ApiError(400, message, param="item", code="conversation_full")
        self.items.insert(place, item)
        return self.items[place - 1].id if place else None

    def before(self, item: Item) -> str | None:
        """The id of the item before one, or None."""
        place = self.items.index(item) if item in self.items else 0
        return self.items[place - 1].id if place else None

    def find(self, name: str) -> Item:
        """The item of that id.

        Raises:
            ApiError: there is none.
        """
        return self.items[self._place(name)]

    def truncate(self, name: str, content_index: int, end_ms: int) -> None:
        """Cuts the text of a spoken item at the word that was heard.

        Raises:
            ApiError: there is no such sound, or not so much of it.
        """
        item = self.find(name)
        self._check_made(item)
        if not 0 <= content_index < len(item.content):
            message = f"content_index: the item has {len(item.content)} parts"
            raise ApiError(400, message, param="content_index", code="invalid_value")
        part = item.content[content_index]
        if part.said is None:
            message = "only sound that the model spoke in this session can be truncated"
            raise ApiError(400, message, param="item_id", code="invalid_value")
        if end_ms > math.ceil(part.sent_s * 1000):
            message = f"audio_end_ms: the sound is only {part.sent_s * 1000:.0f} ms long"
            raise ApiError(400, message, param="audio_end_ms", code="invalid_value")
        part.sent_s = end_ms / 1000
        part.text = part.text[: part.said.heard(part.sent_s)]

    def delete(self, name: str) -> None:
        """Takes an item out.

        Raises:
            ApiError: there is none, or it is being made.
        """
        item = self.find(name)
        self._check_made(item)
        self.items.remove(item)

    def _check_made(self, item: Item) -> None:
        if item.status == "in_progress":
            raise ApiError(400, "the item is being made: cancel its response", param="item_id", code="invalid_value")

    def _place(self, name: str) -> int:
        for place, item in enumerate(self.items):
            if item.id == name:
                return place
        raise ApiError(404, f"there is no item {name[:64]!r}", param="item_id", code="item_not_found")


def messages(items: Iterable[Item], instructions: str) -> list[dict[str, Any]]:
    """The messages of a prompt.

    What the system says comes first, wherever it stands, as chats have it; an answer without words is left out, and a
    conversation that begins with an answer begins with a blank turn of the user.
    """
    system = [instructions]
    turns: list[dict[str, Any]] = []
    for item in items:
        text = "".join(part.text for part in item.content)
        if item.role == "system":
            system.append(text)
        elif item.role == "user":
            add_turn(turns, "user", [part.prompt for part in item.content])
        elif text:
            if not turns:
                add_turn(turns, "user", "")
            add_turn(turns, "assistant", text)
    said = "\n".join(text for text in system if text)
    return [*([{"role": "system", "content": said}] if said else []), *turns]
