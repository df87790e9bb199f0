"""`/v1/responses` without a memory: a chat in the form of OpenAI's Responses API.

The input becomes the messages of a chat; what is answered is one message of text.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.sampling import SamplingParams
from muomni.serve import messages, sse
from muomni.serve.errors import ApiError, api_error
from muomni.serve.metrics import Metrics
from muomni.serve.replies import Head
from muomni.serve.schema import ResponsesRequest

log = logging.getLogger("muomni.serve")
# Items of other models' replies that say nothing to this one.
_SKIPPED = frozenset({"reasoning", "compaction"})
# Parts that clients give without a message around them.
_PARTS = frozenset({"input_text", "input_image", "input_audio"})


def prompt_of(asked: ResponsesRequest, max_media: int) -> list[dict[str, Any]]:
    """The messages of a request: its instructions, then its input.

    Args:
        asked: the request.
        max_media: pictures and sounds at most.

    Raises:
        ApiError: an item has no known form, or there are too many media.
    """
    if isinstance(asked.input, str):
        given: list[Mapping[str, Any]] = [{"role": "user", "content": asked.input}]
    else:
        given = [_message(item, f"input[{number}]") for number, item in enumerate(asked.input)
                 if item.get("type") not in _SKIPPED]  # fmt: skip
    try:
        turns = messages.normalize(given, max_media)
    except ApiError as error:
        raise of_input(error) from None
    prompt: list[dict[str, Any]] = []
    if asked.instructions:
        messages.add_turn(prompt, "system", asked.instructions)
    for turn in turns:
        messages.add_turn(prompt, turn["role"], turn["content"])
    return prompt


def _message(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind in _PARTS:
        return {"role": "user", "content": [item]}
    if kind == "item_reference":
        raise ApiError(400, f"{where}: nothing is stored; send the item itself", param=where, code="unsupported_value")
    message = f"{where}: items may be messages, not {str(kind)[:40]!r}"
    raise ApiError(400, message, param=where, code="unsupported_value")


def of_input(error: BaseException) -> ApiError:
    """An error of the messages as one of the input that they were made from; that of a schema as one of the text."""
    told = api_error(error)
    if told.param == "response_format":
        return ApiError(told.status, str(told), kind=told.kind, param="text.format", code=told.code)
    if told.param is None or not told.param.startswith("messages"):
        return told
    message = f"input{rest}" if (rest := str(told).removeprefix("messages")) != str(told) else rest
    param = told.param.replace("messages", "input", 1)
    return ApiError(told.status, message, kind=told.kind, param=param, code=told.code, headers=told.headers)


class ResponseReply:
    """The one reply to a request.

    Args:
        head: its name and times.
        asked: the request.
        params: what it is sampled with.
        stream: of the reply.
        metrics: measure the stream.
    """

    def __init__(
        self, head: Head, asked: ResponsesRequest, params: SamplingParams, stream: AsyncTextStream, metrics: Metrics
    ) -> None:
        self._head, self._asked, self._params, self._stream = head, asked, params, stream
        self._chunks = metrics.measured(stream, head.arrived)
        self._item_id = f"msg_{head.id}"
        self._number = -1

    async def whole(self) -> dict[str, Any]:
        """The object that a client gets that does not stream.

        Raises:
            what the stream raises.
        """
        async for _ in self._chunks:
            pass
        return self._ended()

    async def events(self) -> AsyncIterator[bytes]:
        """The events of a stream, those that are known at the same time together; a failure is the last of them."""
        started = self._response("in_progress", [])
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield (
            self._event("response.created", response=started)
            + self._event("response.in_progress", response=started)
            + self._event("response.output_item.added", output_index=0, item=self._item("in_progress", None))
            + self._event("response.content_part.added", **place, part=_part(""))
        )
        try:
            async for chunk in self._chunks:
                if chunk.text:
                    yield self._event("response.output_text.delta", **place, delta=chunk.text, logprobs=[])
            text, response = self._stream.reply.text, self._ended()
        except Exception as error:
            told = api_error(error)
            if told.status == 500:
                log.exception("a reply failed")
            failure = {"code": "server_error", "message": str(told)}
            yield self._event("response.failed", response=self._response("failed", [], error=failure))
            return
        yield (
            self._event("response.output_text.done", **place, text=text, logprobs=[])
            + self._event("response.content_part.done", **place, part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=response["output"][0])
            + self._event(f"response.{response['status']}", response=response)
        )

    def _event(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        return sse.event({"type": kind, "sequence_number": self._number, **more}, kind)

    def _ended(self) -> dict[str, Any]:
        """The response once the stream has come to its end."""
        reply, request = self._stream.reply, self._stream.request
        cut = reply.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        new, prompt = len(request.tokens), len(request.prompt)
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": max(request.reused, 0), "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + new,
        }
        details = {"reason": "max_output_tokens"} if cut else None
        output = [self._item(status, reply.text)]
        return self._response(status, output, usage=usage, incomplete_details=details)

    def _item(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
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
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": self._params.temperature,
            "text": {"format": asked.text_format},
            "tool_choice": "auto",
            "tools": [],
            "top_p": self._params.top_p,
            "truncation": "disabled",
            "usage": None,
            **more,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
