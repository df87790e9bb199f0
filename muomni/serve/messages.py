"""OpenAI's messages in the one form that the model's prompts have."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from muomni.serve.errors import ApiError
from muomni.serve.tools import template_calls

_MEDIA = frozenset({"image_url", "input_audio"})
_MOST_MESSAGES = 4096
NO_TOOLS = "this model's chat template has no tools"


def normalize(
    messages: Sequence[Mapping[str, Any]], max_media: int, *, has_tools: bool = False
) -> list[dict[str, Any]]:
    """The messages that the chat template takes.

    `developer` is the system; an assistant's `content` that is null, absent or an empty list is ""; neighbours of one
    role are joined, but for those of tools and their calls.

    Args:
        messages: as a client sent them.
        max_media: pictures and sounds at most.
        has_tools: calls and what they gave are taken.

    Raises:
        ApiError: a message or part has no known form, or there are too many of them.
    """
    if not messages:
        raise ApiError(400, "messages: holds no message", param="messages", code="invalid_value")
    if len(messages) > _MOST_MESSAGES:
        raise ApiError(400, f"messages: at most {_MOST_MESSAGES}", param="messages", code="invalid_value")
    result: list[dict[str, Any]] = []
    media = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = "system" if message.get("role") == "developer" else message.get("role")
        calls = message.get("tool_calls") if role == "assistant" else None
        if role == "function" or (not has_tools and (calls or role == "tool")):
            raise ApiError(400, NO_TOOLS, param=f"{where}.role", code="unsupported_value")
        content = _content(message.get("content"), role, where)
        media += 0 if isinstance(content, str) else sum(part["type"] in _MEDIA for part in content)
        if media > max_media:
            raise ApiError(
                400, f"a request may hold {max_media} pictures and sounds", param=where, code="too_many_media"
            )
        if calls:
            calls = template_calls(calls, where)
            result.append({"role": role, "content": content, "tool_calls": calls})
        else:
            add_turn(result, role, content)
    return result


def add_turn(turns: list[dict[str, Any]], role: Any, content: str | list[dict[str, Any]]) -> None:
    """Adds a message to others; neighbours of one role are joined."""
    if turns and turns[-1]["role"] == role != "tool" and "tool_calls" not in turns[-1]:
        turns[-1]["content"] = _joined(turns[-1]["content"], content)
    else:
        turns.append({"role": role, "content": content})


def _content(content: Any, role: Any, where: str) -> str | list[dict[str, Any]]:
    if content is None or content == []:
        if role != "assistant":
            raise ApiError(400, f"{where}: content is missing", param=f"{where}.content", code="invalid_value")
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: content must be a text or a list of parts", param=f"{where}.content")
    parts = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    """A text, an `image_url` that is a data URL, or an `input_audio` whose data may be bare base64 or a data URL."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return {"type": "text", "text": text}
    elif kind in ("image_url", "input_image"):
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            if url[:5].lower() != "data:":
                message = f"{where}: pictures are not fetched; send them as a data: URL (data:image/png;base64,...)"
                raise ApiError(400, message, param=where, code="invalid_image_url")
            return {"type": "image_url", "image_url": {"url": data_url(url)}}
    elif kind == "input_audio":
        sound = part.get("input_audio")
        data = sound.get("data") if isinstance(sound, dict) else None
        if isinstance(data, str):
            return {"type": "input_audio", "input_audio": {"data": _base64(data)}}
    else:
        message = f"{where}: parts may be text, image_url and input_audio, not {str(kind)[:40]!r}"
        raise ApiError(400, message, param=where, code="unsupported_value")
    raise ApiError(400, f"{where}: a part of type {kind} needs its content", param=where, code="invalid_value")


def data_url(url: str) -> str:
    """A data URL as the model's prompts take it, without parameters, which say nothing that the content does not."""
    head, _, data = url.partition(",")
    return f"{head.partition(';')[0]};base64,{_base64(data)}" if ";base64" in head.lower() else url


def _base64(data: str) -> str:
    """Strict base64: without line breaks and a data URL's head, with padding."""
    if data[:5].lower() == "data:":
        data = data.partition(",")[2]
    # Millions of characters: each call here holds up the event loop.
    if not data.isascii() or any(space in data for space in string.whitespace):
        data = "".join(data.split())
    return data + "=" * (-len(data) % 4)


def _joined(first: str | list[dict[str, Any]], second: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(first, str) and isinstance(second, str):
        return "\n".join(text for text in (first, second) if text)
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
