"""`/v1/responses`: a chat in the form of OpenAI's Responses API, whole and as events, with the official client."""

import asyncio
import base64
import copy
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel
from starlette.testclient import TestClient

from muomni import MuOmni, SamplingParams, Tokenizer
from muomni.data.text.chat_template import ChatTemplate
from muomni.serve.replies import Head
from muomni.serve.responses import ResponseReply
from muomni.serve.schema import ResponsesRequest
from muomni.serve.tools import CallParser
from tests.data.media.containers import sound
from tests.serve.conftest import Running, run, running
from tests.serve.test_chat import picture_url
from tests.serve.test_leaving import all_free, leave, until
from tests.serve.test_tools import PARAMETERS, TEMPLATE, WEATHER

PATH = "/v1/responses"
GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12}
STREAMED = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def post(client: TestClient, given: Any = "Hello there!", **more: Any) -> Any:
    return client.post(PATH, json={"input": given, **GREEDY, **more})


def error(reply: Any) -> tuple[int, str | None, str | None]:
    body = reply.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return reply.status_code, body["param"], body["code"]


def test_a_response_is_what_chat_gives(client: OpenAI, alone: MuOmni) -> None:
    reply = client.responses.create(model="nano", input="Hello there!", **GREEDY)
    expected = alone.chat("Hello there!", temperature=0, max_new_tokens=12)
    assert reply.output_text == expected.text and reply.object == "response"
    assert reply.id.startswith("resp_") and reply.output[0].id.startswith("msg_")  # type: ignore[union-attr]
    cut = expected.finish_reason == "length"
    assert reply.status == ("incomplete" if cut else "completed")
    assert (reply.incomplete_details is not None) == cut and reply.error is None
    usage = reply.usage
    assert usage is not None and usage.input_tokens == expected.timing.prompt_tokens
    assert usage.output_tokens == expected.timing.new_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_the_end_says_whether_the_reply_was_cut(client: OpenAI, alone: MuOmni) -> None:
    short = client.responses.create(model="nano", input="Hello there!", temperature=0, max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None and short.incomplete_details.reason == "max_output_tokens"
    stop = alone.chat("Hello there!", temperature=0, max_new_tokens=12).text[2:5]
    extra = {"stop": stop}
    ended = client.responses.create(model="nano", input="Hello there!", **GREEDY, extra_body=extra)
    assert ended.status == "completed" and ended.incomplete_details is None
    last = list(client.responses.create(model="nano", input="Hello there!", **GREEDY, extra_body=extra, stream=True))[
        -1
    ]
    assert last.type == "response.completed" and last.response.output_text == ended.output_text


def test_a_stream_has_every_event_in_its_order(client: OpenAI, alone: MuOmni) -> None:
    whole = client.responses.create(model="nano", input="Hello there!", **GREEDY)
    events = list(client.responses.create(model="nano", input="Hello there!", **GREEDY, stream=True))
    kinds = [event.type for event in events]
    assert [kind for n, kind in enumerate(kinds[:-1]) if kinds[n - 1] != kind] == STREAMED
    assert kinds[-1] == f"response.{whole.status}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 0 and "".join(deltas) == whole.output_text
    final = events[-1].response  # type: ignore[union-attr]
    (item,) = final.output
    for event in events[2:-1]:
        assert event.output_index == 0  # type: ignore[union-attr]
        assert (getattr(event, "item_id", None) or event.item.id) == item.id  # type: ignore[union-attr]
    assert events[0].response.status == "in_progress" and events[0].response.output == []  # type: ignore[union-attr]
    assert events[-4].text == whole.output_text  # type: ignore[union-attr]
    assert final.output_text == whole.output_text and final.usage is not None and whole.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_bytes_of_a_stream(local: TestClient) -> None:
    reply = post(local, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream") and reply.text.isascii()
    blocks = reply.text.split("\n\n")
    assert blocks.pop() == "" and "[DONE]" not in reply.text
    for block in blocks:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_the_asynchronous_client_and_many_at_once(server: Running, alone: MuOmni) -> None:
    texts = ["Hello there!", "What is this?", "The cat", "The dog ate"]

    async def ask() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = [client.responses.create(model="nano", input=text, **GREEDY) for text in texts]
            replies = [reply.output_text for reply in await asyncio.gather(*asked)]
            streamed = ""
            async with client.responses.stream(model="nano", input=texts[0], **GREEDY) as stream:
                async for event in stream:
                    streamed += event.delta if event.type == "response.output_text.delta" else ""
            return replies, streamed

    expected = [alone.chat(text, temperature=0, max_new_tokens=12).text for text in texts]
    assert run(ask()) == (expected, expected[0])


def test_items_are_the_messages_of_a_chat(local: TestClient, alone: MuOmni) -> None:
    def said(messages: list[dict[str, Any]]) -> str:
        return alone.chat(messages, temperature=0, max_new_tokens=12).text

    def replied(given: Any, **more: Any) -> str:
        return str(post(local, given, **more).json()["output"][0]["content"][0]["text"])

    user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The cat"}
    again = {"role": "user", "content": "What is this?"}
    expected = said([user, assistant, again])
    first = post(local, "Hello").json()
    earlier = {**first["output"][0], "content": [{**first["output"][0]["content"][0], "text": "The cat"}]}
    parts = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is this?"}]}
    for given in (
        [user, assistant, again],
        [user, earlier, parts],
        [user, {"type": "reasoning", "summary": []}, earlier, parts],
        [user, assistant, {"type": "input_text", "text": "What is this?"}],
    ):
        assert replied(given) == expected
    system = {"role": "system", "content": "The dog"}
    assert replied("Hello", instructions="The dog") == said([system, user])
    joined = {"role": "system", "content": "The dog\nThe bone"}
    assert replied([{"role": "developer", "content": "The bone"}, user], instructions="The dog") == said([joined, user])
    image = {"type": "input_image", "image_url": picture_url(), "detail": "auto"}
    data = base64.b64encode(sound()).decode()
    heard = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    seen = replied([{"role": "user", "content": [image, heard, {"type": "input_text", "text": "What is this?"}]}])
    picture = base64.b64decode(picture_url().partition(",")[2])
    prompt = [picture, {"type": "audio", "audio": sound()}, "What is this?"]
    assert seen == alone.chat(prompt, temperature=0, max_new_tokens=12).text


class Answer(BaseModel):
    """What the text has to be."""

    name: str
    good: bool


def test_the_text_follows_a_schema(client: OpenAI, local: TestClient) -> None:
    schema = Answer.model_json_schema() | {"additionalProperties": False}
    schema["properties"]["name"]["maxLength"] = 5
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    body = post(local, text={"format": form}, max_output_tokens=100).json()
    jsonschema.validate(json.loads(body["output"][0]["content"][0]["text"]), schema)
    assert body["text"]["format"]["name"] == "answer" and body["text"]["format"]["schema"] == schema
    reply = client.responses.create(model="nano", input="Hello", text={"format": {"type": "json_object"}}, **GREEDY)
    assert reply.output_text.startswith("{")
    for wrong in ({**form, "schema": {"type": "nothing"}}, {"type": "yaml"}, {**form, "name": "a b"}):
        status, param, code = error(post(local, text={"format": wrong}))
        assert status == 400 and str(param).startswith("text") and code, wrong
    assert post(local).status_code == 200


def test_options_are_honoured_or_refused(local: TestClient) -> None:
    for key, value in (
        ("previous_response_id", "resp_1"),
        ("store", True),
        ("conversation", "conv_1"),
        ("background", True),
        ("truncation", "auto"),
        ("include", ["message.output_text.logprobs"]),
        ("top_logprobs", 3),
        ("prompt", {"id": "p"}),
        ("reasoning", {"effort": "high"}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "name": "f"}),
        ("tools", [{"type": "function", "name": "f", "parameters": {}}]),
        ("temperature", -1),
        ("top_p", 3),
        ("max_output_tokens", 0),
        ("n", 2),
        ("input", None),
        ("input", []),
        ("metadata", 3),
    ):
        status, param, code = error(
            post(local, **{"given": "Hello", key: value} if key != "input" else {"given": value})
        )
        assert (status, param) == (400, key) and code, (key, value)
    neutral: dict[str, Any] = {
        "store": False,
        "previous_response_id": None,
        "tools": [],
        "tool_choice": "auto",
        "include": None,
    }
    more = {"truncation": "disabled", "background": False, "reasoning": {"effort": None}, "user": "u"}
    reply = post(local, **neutral, **more, metadata={"a": "b"}, parallel_tool_calls=True, service_tier="auto")
    assert reply.status_code == 200 and "x-ignored-parameters" not in reply.headers
    assert reply.json()["metadata"] == {"a": "b"} and reply.json()["store"] is False
    skipped = post(local, tools=[{"type": "web_search"}, {"type": "no_such_tool"}], colour="red")
    assert skipped.status_code == 200 and skipped.headers["x-ignored-parameters"] == "colour, tools"
    assert error(post(local, model="gpt-5"))[::2] == (404, "model_not_found")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0]"),
        ({"type": "function_call_output", "call_id": "a", "output": "b"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b.png"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "/etc/passwd"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}, "input"),
        ({"role": "user", "content": 3}, "input[0].content"),
        ({"role": "king", "content": "Hello"}, "input"),
        ({"role": "user"}, "input[0].content"),
        ({}, "input[0].content"),
        ({"type": 3}, "input[0]"),
        ({"role": "user", "content": "word " * 300}, "input"),
    ],
)  # fmt: skip
def test_items_that_are_wrong(local: TestClient, item: Any, param: str) -> None:
    reply = post(local, [item])
    assert error(reply)[:2] == (400, param)
    assert not reply.json()["error"]["message"].startswith("messages")


FLAT = {"type": "function", **WEATHER["function"], "strict": True}  # type: ignore[dict-item]
CLOCK = {"type": "function", "name": "clock"}


@pytest.fixture(scope="module")
def tooled(omni: MuOmni) -> Iterator[Running]:
    """A server whose model's template has tools."""
    config = omni.config.replace(thinker=omni.config.thinker.replace(max_position_embeddings=1024))
    model = MuOmni.from_config(config, device="cpu", seed=1).eval()
    assert omni.tokenizer is not None
    model.tokenizer = Tokenizer(copy.deepcopy(omni.tokenizer.backend), ChatTemplate(TEMPLATE), omni.tokenizer.config)
    with running(model, slots=2) as server:
        yield server


def test_functions_are_called(tooled: Running) -> None:
    client = OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0)
    options: Any = {"model": "nano", "temperature": 0, "max_output_tokens": 200, "parallel_tool_calls": False}
    options |= {"input": "Hi", "tools": [FLAT, CLOCK, {"type": "web_search"}]}
    reply = client.responses.create(**options, tool_choice={"type": "function", "name": "weather"})
    (call,) = reply.output
    assert call.type == "function_call" and call.name == "weather" and reply.status == "completed"
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    assert [tool.name for tool in reply.tools] == ["weather", "clock"]  # type: ignore[union-attr]
    events = list(client.responses.create(**options, tool_choice="required", stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed"]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(7))
    (item,) = events[-1].response.output  # type: ignore[union-attr]
    assert events[3].delta == events[4].arguments == item.arguments  # type: ignore[union-attr]
    assert events[3].item_id == events[5].item.id == item.id  # type: ignore[union-attr]
    # What was called and what it gave is the history of the next turn: the same as in a chat.
    given = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    history = [{"role": "user", "content": "Hi"}, call.to_dict(), given]
    again = tooled.http.post(PATH, json={"input": history, "tools": [FLAT], **GREEDY, "tool_choice": "none"}).json()
    function = {"name": call.name, "arguments": call.arguments}
    calls = [{"id": call.call_id, "type": "function", "function": function}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]
    body = {"messages": messages, "tools": [WEATHER], "tool_choice": "none", "temperature": 0, "max_tokens": 12}
    chat = tooled.http.post("/v1/chat/completions", json=body).json()
    assert again["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert again["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_text_and_calls_of_one_reply_are_items_in_their_order() -> None:
    """Whatever pieces the text comes in."""
    text = 'The cat <tool_call>\n{"name": "clock", "arguments": {"a": 1}}\n</tool_call>\nand<tool_call>{"name"'
    for size in (1, 3, 7, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        events, response = steps(pieces, CallParser({"clock"}))
        kinds = [item["type"] for item in response["output"]]
        assert kinds == ["message", "function_call", "message"]
        first, call, last = response["output"]
        assert first["content"][0]["text"] == "The cat" and json.loads(call["arguments"]) == {"a": 1}
        assert last["content"][0]["text"].strip() == 'and<tool_call>{"name"'
        assert len({item["id"] for item in response["output"]}) == 3
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        for index, item in enumerate(response["output"]):
            own = [event for event in events if event.get("output_index") == index]
            assert own[0]["type"] == "response.output_item.added" and own[-1]["item"] == item
            deltas = "".join(event["delta"] for event in own if "delta" in event)
            assert deltas == (item["content"][0]["text"] if item["type"] == "message" else item["arguments"])
    _, response = steps([], CallParser({"clock"}))
    assert [item["content"][0]["text"] for item in response["output"]] == [""]


def steps(pieces: list[str], parser: CallParser | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a reply that comes in these pieces, and the whole response."""
    stream = SimpleNamespace(
        reply=SimpleNamespace(finish_reason="stop"), request=SimpleNamespace(tokens=[1], prompt=[1], reused=0)
    )

    async def measured(*_: Any) -> Any:
        for piece in pieces:
            yield SimpleNamespace(text=piece)

    def made() -> ResponseReply:
        metrics: Any = SimpleNamespace(measured=measured)
        asked = ResponsesRequest(input="Hi")
        return ResponseReply(Head("response", "nano"), asked, SamplingParams(), cast("Any", stream), metrics, parser)

    async def read() -> list[dict[str, Any]]:
        lines = "".join([event.decode() async for event in made().events()]).split("\n\n")
        return [json.loads(line.partition("data: ")[2]) for line in lines if line]

    events = run(read())
    return events, events[-1]["response"]


def test_whoever_leaves_frees_the_slot_and_a_failure_is_the_last_event(serving: Callable[..., Any]) -> None:
    with serving(slots=1, max_waiting=8) as server:
        body = {"input": "Hello", "max_output_tokens": 200, "ignore_eos": True}
        for stream in (True, False):
            for read in (0, 1, 900) if stream else (0,):
                leave(server, {**body, "stream": stream}, read, path=PATH)
                assert until(lambda: all_free(server)), (stream, read)
        deliver, calls = server.engine.engine._core._deliver, []

        def fails(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("a bug with a secret")
            deliver(*args)

        server.engine.engine._core._deliver = fails
        options = {"max_output_tokens": 100, "temperature": 1.0, "seed": 3, "stream": True}
        text = server.http.post(PATH, json={"input": "Hello", **options}).text
        last = json.loads(text.split("\n\n")[-2].partition("data: ")[2])
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error" and "secret" not in text
        assert until(lambda: all_free(server))
        assert server.http.post(PATH, json={"input": "Hello", **GREEDY}).status_code == 200


def test_errors_reach_the_official_client(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="no response is stored here") as raised:
        client.responses.create(model="nano", input="Hello", previous_response_id="resp_1")
    assert raised.value.param == "previous_response_id"
