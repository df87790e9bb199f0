"""Tools: rendered by the template, called in a form that is parsed, constrained where a request asks for it."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from starlette.testclient import TestClient

from muomni import MuOmni, Tokenizer
from muomni.data.text.chat_template import ChatTemplate
from muomni.serve.tools import CallParser, ToolRequest
from tests.serve.conftest import Running, running

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call by <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
USER = {"role": "user", "content": "Hi"}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def model(omni: MuOmni) -> MuOmni:
    """The shared model with a template that has tools; its context is long enough for them."""
    config = omni.config.replace(thinker=omni.config.thinker.replace(max_position_embeddings=1024))
    model = MuOmni.from_config(config, device="cpu", seed=1).eval()
    assert omni.tokenizer is not None
    model.tokenizer = Tokenizer(copy.deepcopy(omni.tokenizer.backend), ChatTemplate(TEMPLATE), omni.tokenizer.config)
    return model


@pytest.fixture(scope="module")
def tooled(model: MuOmni) -> Iterator[Running]:
    with running(model, slots=3) as server:
        yield server


def chat(server: Running, **more: Any) -> Any:
    body = {"messages": [USER], "max_tokens": 150, "temperature": 0, "tools": [WEATHER, CLOCK], **more}
    return server.http.post("/v1/chat/completions", json=body)


def checked(message: dict[str, Any]) -> list[str]:
    """The names of a message's calls, whose arguments hold to their schema."""
    for call in message["tool_calls"]:
        assert call["type"] == "function" and call["id"].startswith("call_")
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            jsonschema.validate(arguments, PARAMETERS)
    return [call["function"]["name"] for call in message["tool_calls"]]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 1.0, "seed": 2, "n": 2}, {"speculate": True}],
    ids=["greedy", "drawn", "speculate"],
)
def test_a_named_function_is_called_by_its_schema(tooled: Running, options: dict[str, Any]) -> None:
    body = chat(tooled, tool_choice=NAMED, **options).json()
    for choice in body["choices"]:
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        assert checked(choice["message"]) == ["weather"]


def test_required_calls_some_and_without_parallel_exactly_one(tooled: Running) -> None:
    for seed in range(4):
        options = {"tools": [WEATHER], "tool_choice": "required", "temperature": 1.0, "seed": seed}
        choice = chat(tooled, **options).json()["choices"][0]
        assert choice["finish_reason"] == "length" or checked(choice["message"])
        choice = chat(tooled, parallel_tool_calls=False, **options).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and checked(choice["message"]) == ["weather"]


def test_tokens_of_calls_are_told_with_their_logprobs(tooled: Running) -> None:
    options: dict[str, Any] = {"tool_choice": NAMED, "temperature": 0, "logprobs": True, "deterministic": True}
    whole = chat(tooled, **options).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in whole).startswith(b'<tool_call>\n{"name"')
    lines = chat(tooled, stream=True, **options).text.split("\n\n")[:-2]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    told = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
    assert [entry for entries in told for entry in entries] == whole


def test_streamed_calls_are_the_whole_ones(tooled: Running) -> None:
    client = OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "nano", "messages": [USER], "tools": [STRICT, CLOCK], "tool_choice": NAMED}
    options |= {"temperature": 0, "max_tokens": 150}
    whole = client.chat.completions.create(**options).choices[0].message
    assert whole.tool_calls
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        last = stream.get_final_completion().choices[0]
    assert last.finish_reason == "tool_calls" and last.message.tool_calls
    functions = [call.function for call in last.message.tool_calls]  # type: ignore[union-attr]
    assert functions[0].name == "weather" and functions[0].arguments == whole.tool_calls[0].function.arguments  # type: ignore[union-attr]
    jsonschema.validate(json.loads(functions[0].arguments), PARAMETERS)


def test_what_a_tool_gave_is_read(tooled: Running, model: MuOmni) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain <|im_end|>"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": ""}]},
    ]
    body = chat(tooled, messages=messages, max_tokens=4).json()
    assert model.tokenizer is not None
    tools = [{"type": "function", "function": {**WEATHER["function"]}}, CLOCK]  # type: ignore[dict-item]
    made: dict[str, Any] = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    told: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [made] * 2},
        {"role": "tool", "content": "Rain @"},
        {"role": "tool", "content": ""},
    ]
    text = model.tokenizer.chat_template.render(told, True, tools)
    assert text.count("<tool_response>\nRain @\n</tool_response>") == 1
    assert text.count('"arguments": {"city": "Oslo"}') == 2
    special = model.tokenizer.special_pattern
    pieces = [piece for part in special.split(text) for piece in model.tokenizer.encode(part)]
    # The mark in the tool's answer is plain text, not the end of a turn.
    count = len(pieces) + len(special.findall(text)) - len(model.tokenizer.encode("Rain @"))
    assert body["usage"]["prompt_tokens"] == count + len(model.tokenizer.encode("Rain <|im_end|>"))
    assert chat(tooled, messages=messages, tools=None, max_tokens=4).status_code == 200
    assert chat(tooled, messages=[*messages, USER], max_tokens=4).status_code == 200
    assert chat(tooled, messages=messages, tool_choice="none", max_tokens=4).status_code == 200


def nested_call() -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": '{"a":' * 400 + "1" + "}" * 400}}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tools": [{"type": "web"}]}, "tools[0]"),
        ({"tools": [CLOCK] * 2}, None),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, None),
        ({"tools": [], "tool_choice": "required"}, None),
        ({"tool_choice": "sometimes"}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "tools"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [3]}, USER]}, "messages[1].tool_calls"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [nested_call()]}, USER]}, "messages[1].tool_calls"),
        ({"messages": [USER, {"role": "function", "content": "x"}]}, "messages[1].role"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://x"}}}],
            },
            "tools",
        ),
    ],
)
def test_what_cannot_be_is_a_400(tooled: Running, options: dict[str, Any], param: str | None) -> None:
    reply = chat(tooled, **options)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert param is None or error["param"] == param, error


def test_a_template_without_tools_says_so(in_process: Callable[..., TestClient]) -> None:
    client = in_process()
    body: dict[str, Any] = {"messages": [USER], "tools": [WEATHER]}
    reply = client.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
    assert "template has no tools" in reply.json()["error"]["message"]
    body |= {"tool_choice": "none", "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "</tool_call> é"}}\n</tool_call>'
DEEP = '{"a":' * 400 + "1" + "}" * 400
REPLIES = {
    CALL: ("", 1),
    f"Let me see.\n\n{CALL}\n{CALL}": ("Let me see.", 2),
    f"{CALL} and then": (" and then", 1),
    "no call <tool_cal": ("no call <tool_cal", 0),
    " \n ": (" \n ", 0),
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>': (None, 0),
    '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>': (None, 0),
    '<tool_call>{"name": ["clock"], "arguments": {}}</tool_call>': (None, 0),
    '<tool_call>{"name": "clock", "arguments": {"a": NaN}}</tool_call>': (None, 0),
    "<tool_call>" + "[" * 5000 + "</tool_call>": (None, 0),
    "<tool_call>nothing": (None, 0),
    "a \n <tool_call>nothing": (None, 0),
    "a \n <tool_call>nothing</tool_call> \n": (None, 0),
    '<tool_call>{"name": "clock", "arguments": ' + DEEP + "}</tool_call>": (None, 0),
    f"<tool_call>broken</tool_call>{CALL}": ("<tool_call>broken</tool_call>", 1),
}


@given(st.sampled_from(sorted(REPLIES)), st.lists(st.integers(1, 30), max_size=40))
def test_calls_are_found_however_the_text_is_cut(text: str, cuts: list[int]) -> None:
    parser = CallParser({"clock"})
    pieces: list[Any] = []
    rest = text
    for cut in cuts:
        pieces += parser.push(rest[:cut])
        rest = rest[cut:]
    pieces += [*parser.push(rest), parser.finish()]
    content, count = REPLIES[text]
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == (text if content is None else content)
    assert [piece for piece in pieces if isinstance(piece, dict)] == parser.calls and len(parser.calls) == count
    assert len({call["id"] for call in parser.calls}) == count
    for call in parser.calls:
        assert json.loads(call["function"]["arguments"]) == {"zone": "</tool_call> é"}


def accepted(request: dict[str, Any], text: str) -> bool:
    """Whether a reply could be this text, by bytes."""
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    class Bytes:
        eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
        tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]  # noqa: RUF012

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    grammar = ToolRequest.model_validate(request).call_grammar
    assert grammar is not None
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes())), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


GOOD = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
WRONG = GOOD.replace("Oslo", "Paris")
TIME = '<tool_call>\n{"name": "clock", "arguments": {"any": [1]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"tool_choice": "required"}, [GOOD, TIME, f"{GOOD}\n{TIME}"], ["Hi", WRONG, f"Hi {GOOD}"]),
        ({"tool_choice": NAMED}, [GOOD], [TIME, f"{GOOD}\n{GOOD}"]),
        ({"parallel_tool_calls": False}, ["", "Hi", f"Hi {GOOD}", TIME], [f"{GOOD}\n{TIME}", "<tool_call>x"]),
        ({"tools": [STRICT, CLOCK]}, ["", "Hi", GOOD, f"Hi {GOOD}\n{TIME} bye"], [WRONG, f"{TIME}{WRONG}"]),
    ],
)
def test_the_grammar_of_calls(options: dict[str, Any], good: list[str], bad: list[str]) -> None:
    request = {"tools": [WEATHER, CLOCK], **options}
    assert all(accepted(request, text) for text in good)
    assert not any(accepted(request, text) for text in bad)


def test_any_text_may_come_where_nothing_is_asked_for() -> None:
    assert ToolRequest.model_validate({"tools": [WEATHER]}).call_grammar is None
    assert ToolRequest.model_validate({"tools": [STRICT], "tool_choice": "none"}).call_grammar is None
