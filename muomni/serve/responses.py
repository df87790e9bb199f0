"""`/v1/responses` without a memory: a chat in the form of OpenAI's Responses API.

The input becomes the messages of a chat; what is answered is one message of text.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.sampling import SamplingParams
from muomni.serve import messages, sse
from muomni.serve.errors import ApiError, api_error
from muomni.serve.metrics import Metrics
from muomni.serve.replies import Head
from muomni.serve.schema import ResponsesRequest
from muomni.serve.tools import CallParser

log = logging.getLogger("muomni.serve")
# Items of other models' replies that say nothing to this one.
_SKIPPED = frozenset({"reasoning", "compaction"})
# Parts that clients give without a message around them.
_PARTS = frozenset({"input_text", "input_image", "input_audio"})


def prompt_of(asked: ResponsesRequest, max_media: int, *, has_tools: bool) -> list[dict[str, Any]]:
    """The messages of a request: its instructions, then its input.

    Args:
        asked: the request.
        max_media: pictures and sounds at most.
        has_tools: calls and what they gave are taken.

    Raises:
        ApiError: an item has no known form, or there are too many media.
    """
    try:
        turns = messages.normalize(_messages(asked.input), max_media, has_tools=has_tools)
    except ApiError as error:
        raise of_input(error) from None
    prompt: list[dict[str, Any]] = []
    if asked.instructions:
        messages.add_turn(prompt, "system", asked.instructions)
        if turns[0]["role"] == "system":
            messages.add_turn(prompt, "system", turns.pop(0)["content"])
    return [*prompt, *turns]


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input as messages of a chat; calls that follow on one another are one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    result: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        if item.get("type") in _SKIPPED:
            continue
        message = _message(item, f"input[{number}]")
        if "tool_calls" in message and result and "tool_calls" in result[-1]:
            result[-1]["tool_calls"] += message["tool_calls"]
        else:
            result.append(message)
    return result


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind in _PARTS:
        return {"role": "user", "content": [item]}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "item_reference":
        raise ApiError(400, f"{where}: nothing is stored; send the item itself", param=where, code="unsupported_value")
    message = f"{where}: items may be messages, calls of functions and their outputs, not {str(kind)[:40]!r}"
    raise ApiError(400, message, param=where, code="unsupported_value")


def of_input(error: BaseException) -> ApiError:
    """An error of the messages as one of the input that they were made from."""
    told = api_error(error)
    if told.param is None or not told.param.startswith("messages"):
        return told
    message = f"input{rest}" if (rest := str(told).removeprefix("messages")) != str(told) else rest
    param = told.param.replace("messages", "input", 1)
    return ApiError(told.status, message, kind=told.kind, param=param, code=told.code, headers=told.headers)


class ResponseReply:
    """The one reply to a request: messages of text, and calls of functions.

    Args:
        head: its name and times.
        asked: the request.
        params: what it is sampled with.
        stream: of the reply.
        metrics: measure the stream.
        parser: finds the calls in the text; None where there are no tools.
    """

    def __init__(
        self,
        head: Head,
        asked: ResponsesRequest,
        params: SamplingParams,
        stream: AsyncTextStream,
        metrics: Metrics,
        parser: CallParser | None,
    ) -> None:
        self._head, self._asked, self._params, self._stream = head, asked, params, stream
        self._chunks = metrics.measured(stream, head.arrived)
        self._parser = parser
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._text: str | None = None  # of the message that is being written

    async def whole(self) -> dict[str, Any]:
        """The object that a client gets that does not stream.

        Raises:
            what the stream raises.
        """
        response: dict[str, Any] = {}
        async for events in self._steps():
            response = events[-1].get("response", response)
        return response

    async def events(self) -> AsyncIterator[bytes]:
        """The events of a stream, those that are known at the same time together; a failure is the last of them."""
        try:
            async for events in self._steps():
                yield b"".join(sse.event(event, event["type"]) for event in events)
        except Exception as error:
            told = api_error(error)
            if told.status == 500:
                log.exception("a reply failed")
            failure = {"code": "server_error", "message": str(told)}
            event = self._event("response.failed", response=self._response("failed", error=failure))
            yield sse.event(event, event["type"])

    async def _steps(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Events as they become known; the last one holds the whole response."""
        started = self._response("in_progress")
        events = [self._event(f"response.{kind}", response=started) for kind in ("created", "in_progress")]
        if self._parser is None:
            events += self._open()
        yield events
        async for chunk in self._chunks:
            pieces = [chunk.text] if self._parser is None else list(self._parser.push(chunk.text))
            if events := [event for piece in pieces if piece for event in self._add(piece)]:
                yield events
        events = self._add(rest) if self._parser is not None and (rest := self._parser.finish()) else []
        cut = self._stream.reply.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        if not self._output and self._text is None:
            events += self._open()
        events += self._close(status)
        details = {"reason": "max_output_tokens"} if cut else None
        response = self._response(status, usage=self._usage(), incomplete_details=details)
        yield [*events, self._event(f"response.{status}", response=response)]

    def _add(self, piece: str | dict[str, Any]) -> list[dict[str, Any]]:
        """Events of a piece of text, or of a call."""
        if isinstance(piece, str):
            events = self._open() if self._text is None else []
            self._text = (self._text or "") + piece
            return [*events, self._event("response.output_text.delta", **self._place, delta=piece, logprobs=[])]
        events = self._close("completed")
        name, arguments = piece["function"]["name"], piece["function"]["arguments"]
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": piece["id"], "name": name}
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        events += [
            self._event("response.output_item.added", output_index=len(self._output), item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=name, arguments=arguments),
        ]
        return [*events, self._done({**item, "arguments": arguments, "status": "completed"})]

    def _open(self) -> list[dict[str, Any]]:
        """Events of a message that begins."""
        self._text = ""
        item = self._message("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=len(self._output), item=item),
            self._event("response.content_part.added", **self._place, part=_part("")),
        ]

    def _close(self, status: str) -> list[dict[str, Any]]:
        """Events of the message that ends, if there is one."""
        if self._text is None:
            return []
        text, part = self._text, _part(self._text)
        events = [
            self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            self._done(self._message(status, [part])),
        ]
        self._text = None
        return events

    def _done(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **more}

    @property
    def _place(self) -> dict[str, Any]:
        """Of the text that is being written."""
        return {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}

    @property
    def _message_id(self) -> str:
        return f"msg_{self._head.id}{len(self._output)}"

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _usage(self) -> dict[str, Any]:
        request = self._stream.request
        new, prompt = len(request.tokens), len(request.prompt)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": max(request.reused, 0), "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + new,
        }

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": f"resp_{self._head.id}",
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._head.model,
            "output": [*self._output],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._params.temperature,
            "text": {"format": asked.text_format},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.functions,
            "top_p": self._params.top_p,
            "truncation": "disabled",
            "usage": None,
            **more,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
