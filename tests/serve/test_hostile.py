"""Requests of somebody who wants to break the server: it never fails, never hangs, never keeps a place."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "Hi"}
URLS = [
    "data:image/png;base64,",
    "data:,",
    "data:image/png;base64,AAAA",
    "http://x/",
    "file:///etc/passwd",
    "",
    "data:",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 1e-320, 0.0, -0.0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\x00", "\ud800", "\U0010ffff", "<|im_start|>", "<|image|>", "\ue0000\ue001", "x" * 5000, *URLS]),
)
KEYS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["type", "text", "image_url", "url", "path", "archive", "input_audio", "data", "format", "bytes"]),
    st.sampled_from(["role", "content", "tool_calls", "name", "array", "sampling_rate", "refusal", "audio", "id"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
KINDS = ["text", "input_text", "output_text", "refusal", "image_url", "input_image", "image", "input_audio", "audio"]
PARTS = VALUES | st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from([*KINDS, "video", "video_url", "file"]),
    st.dictionaries(KEYS, VALUES, max_size=3),
)
ROLES: Any = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function", "", None, 3, []])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": st.one_of(VALUES, st.lists(PARTS, max_size=4))}) | VALUES,
    max_size=4,
)
FIELDS = [
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "n", "stream",
    "stream_options", "deterministic", "speculate", "modalities", "audio", "max_completion_tokens", "max_tokens",
    "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "logit_bias", "frequency_penalty",
    "presence_penalty", "metadata", "user", "prompt", "input", "voice", "speed", "response_format", "stream_format",
    "instructions", "echo", "suffix", "best_of", "x", " ", ",", "\u00e9", "a\nb", "ignore_eos", "max_new_tokens",
    "text", "max_output_tokens", "previous_response_id", "store", "reasoning", "include", "truncation", "background",
]  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/audio/speech", "/tokenize"]


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(max_tokens=3)


def send(client: TestClient, path: str, body: bytes) -> Any:
    reply = client.post(path, content=body, headers=JSON)
    assert reply.status_code < 500, (path, body[:2000], reply.text)
    if reply.status_code >= 400:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert len(reply.content) < 10_000
    assert sum(map(len, reply.headers.values())) < 10_000
    return reply


@settings(
    max_examples=int(os.environ.get("MUOMNI_FUZZ_EXAMPLES", "60")),
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(
    st.sampled_from(PATHS),
    MESSAGES,
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    st.booleans(),
)
def test_any_values_in_any_key_are_answered_or_told(
    client: TestClient, path: str, messages: Any, keys: dict[str, Any], right: bool
) -> None:
    body: dict[str, Any] = {"messages": [*messages, USER] if right else messages, "prompt": "Hi", "input": "Hi", **keys}
    if path == "/v1/responses" and right:
        body["input"] = body.pop("messages")
    send(client, path, json.dumps(body).encode())


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": [USER], **more}).encode()


def user(content: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": content}])


SMALL = {
    "nan": b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "Hi"}], "top_p": -Infinity}',
    "huge number": b'{"messages": [{"role": "user", "content": "Hi"}], "seed": 1' + b"0" * 5000 + b"}",
    "huge exponent": b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999999999}',
    "lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "lone surrogate in a key": b'{"messages": [{"role": "user", "content": "Hi"}], "\\udfff": 1, "\\ud800": 2}',
    "no utf-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "byte order mark": b"\xef\xbb\xbf" + chat(),
    "utf-16": chat().decode().encode("utf-16"),
    "zeros": b"\0" * 1000,
    "nested lists": b'{"messages": ' + b"[" * 200_000,
    "nested objects": b'{"messages": [{"role": "user", "content": '
    + b'{"a":' * 100_000
    + b"1"
    + b"}" * 100_000
    + b"}]}",
    "nested in an unknown key": chat()[:-1] + b', "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "comment": b"/* */" + chat(),
    "two values": chat() + chat(),
    "text as a number": chat(max_tokens="8"),
    "a key for a header": chat(**{" ": 1, "a, b": 2, "a\r\nb": 3, "é": 4, "x" * 5000: 5}),
    "no messages": chat(messages=[]),
    "messages as an object": chat(messages={}),
    "messages of nulls": chat(messages=[None]),
    "neither role nor content": chat(messages=[{}]),
    "a role that is long": chat(messages=[{"role": "x" * 100_000, "content": "Hi"}]),
    "a kind that is long": user([{"type": "x" * 100_000}]),
    "a model that is long": chat(model="x" * 100_000),
    "model is a path": chat(model="../../etc/passwd"),
    "model is a repository": chat(model="Qwen/Qwen3-0.6B"),
    "n": chat(n=16_384),
    "n is 0": chat(n=0),
    "max_tokens": chat(max_tokens=10**30),
    "stop texts": chat(stop=["x"] * 17),
    "a long stop text": chat(stop="x" * 100_000),
    "top_logprobs": chat(logprobs=True, top_logprobs=1000),
    "many parts": user([{"type": "text", "text": "x"}] * 30_000),
    "many pictures": user([{"type": "image_url", "image_url": {"url": "data:,"}}] * 17),
    "broken base64": user([{"type": "input_audio", "input_audio": {"data": "!"}}]),
    "base64 of blanks": user([{"type": "input_audio", "input_audio": {"data": " \n" * 100_000}}]),
    "many messages": chat(messages=[USER] * 30_000),
    "many turns": chat(messages=[USER, {"role": "assistant"}] * 10_000),
    "many unknown keys": chat(**{f"k{number}": 1 for number in range(30_000)}),
    "many values": chat(x=[1] * 1_000_000),
    "many wrong values": chat(messages=[1] * 100_000),
    "many objects": chat(x=[{}] * 300_000),
    "special tokens": user("<|im_start|>" * 50_000),
    "private use": user("\ue000" * 400_000),
    "blanks": user(" " * 400_000 + "x"),
    "long word": user("x" * 400_000),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.timeout(20)
def test_hostile_bodies_are_answered_or_told(client: TestClient, name: str) -> None:
    send(client, "/v1/chat/completions", SMALL[name])


def test_the_last_of_two_equal_keys_counts(client: TestClient) -> None:
    body = b'{"messages": [], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "max_tokens": 2}'
    assert send(client, "/v1/chat/completions", body).json()["usage"]["completion_tokens"] <= 2


def test_unknown_keys_are_named_as_far_as_a_header_holds_them(client: TestClient) -> None:
    keys = {"frobnicate": 1, " ": 2, "a, b": 3, "a\r\nSet-Cookie: x": 4, "x" * 5000: 5, "é": 6}
    assert send(client, "/v1/chat/completions", chat(**keys)).headers["x-ignored-parameters"] == "frobnicate"


def test_a_strict_server_refuses_keys_that_no_header_holds(in_process: Callable[..., TestClient]) -> None:
    client = in_process(strict=True, max_tokens=1)
    for key in ("frobnicate", "é", " ", "x" * 5000):
        reply = send(client, "/v1/chat/completions", chat(**{key: 1}))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n", 9), ("n", 0), ("stop", ["x"] * 17), ("stop", "x" * 1001), ("top_k", -1), ("max_tokens", 0), ("seed", 2**64)],
)
def test_work_is_bounded(client: TestClient, key: str, value: Any) -> None:
    reply = send(client, "/v1/chat/completions", chat(**{key: value}))
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "invalid_value"


def test_a_reply_is_as_long_as_the_server_lets_it_be(client: TestClient) -> None:
    reply = send(client, "/v1/chat/completions", chat(max_tokens=10**9, n=8))
    assert reply.json()["usage"]["completion_tokens"] <= 8 * 3


@pytest.mark.parametrize("model", ["other", "..", "/etc/passwd", "Qwen/Qwen3-0.6B", "nano/../nano", "", "nano "])
def test_a_model_is_a_served_name_and_nothing_else(client: TestClient, model: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [USER]},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/audio/speech": {"input": "Hi"},
    }
    for path, body in bodies.items():
        reply = send(client, path, json.dumps({**body, "model": model}).encode())
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found"), path
