"""Text on its way to a client: replies whose tokens are given, however they are cut and read."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from muomni import MuOmni
from muomni.serve import sse
from tests.serve.conftest import Running
from tests.serve.test_chat import events

ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj\rk\nl\x00m\x7f\ufffd\ue000\U0010ffff\ufeffz"
MULTI_BYTE = "Grüße, 你好 😀👩‍👩‍👧 नमस्ते"
PLAIN = "The cat sat on the mat. Hello there!"


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(max_tokens=200)


Says = Callable[..., None]


@pytest.fixture
def says(omni: MuOmni, monkeypatch: pytest.MonkeyPatch) -> Says:
    """`says(text, text2)`: choice 0 of every request is the first text, choice 1 the second, with an end."""
    from muomni.infer.engine.core import EngineCore

    deliver = EngineCore._deliver

    def script(*texts: str) -> None:
        assert omni.tokenizer is not None
        tokenizer = omni.tokenizer
        scripts = [[*tokenizer.encode(text), *([tokenizer.end_ids[0]] * 200)] for text in texts]

        def delivering(self: Any, requests: Any, rows: Any, started: float) -> None:
            given = []
            for request, row in zip(requests, rows, strict=True):
                begin = len(request.tokens)
                given.append(scripts[request.row][begin : begin + len(row)])
            deliver(self, requests, given, started)

        monkeypatch.setattr(EngineCore, "_deliver", delivering)

    return script


def chat(client: Any, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "Hi"}], **more}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply


def deltas(client: Any, **more: Any) -> list[str]:
    chunks = events(chat(client, stream=True, **more).text)
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]


def test_no_character_cuts_an_event() -> None:
    """Also not for readers that split as `str.splitlines` does."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for begin in range(0, len(characters), 4096):
        text = "".join(characters[begin : begin + 4096])
        line = sse.event({"x": text}).decode("ascii")
        assert line.endswith("\n\n") and len(line.splitlines()) == 2
        assert json.loads(line.removeprefix("data: ")) == {"x": text}


@pytest.mark.parametrize("text", [ODD, MULTI_BYTE, PLAIN])
def test_a_reply_is_what_the_model_says(client: TestClient, says: Says, text: str) -> None:
    says(text)
    choice = chat(client).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    pieces = deltas(client)
    assert "".join(pieces) == text


def test_a_client_that_reads_single_bytes_gets_whole_characters(server: Running, says: Says) -> None:
    says(MULTI_BYTE)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 100}).encode()
    head = "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    data = b""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        while byte := connection.recv(1):
            data += byte
    chunks = events(data.partition(b"\r\n\r\n")[2].decode("ascii"))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == MULTI_BYTE
    assert not any("\ufffd" in piece for piece in pieces)


def boundaries(omni: MuOmni) -> Iterator[str]:
    """Every stretch of the plain reply that begins and ends where tokens do, of up to four tokens."""
    assert omni.tokenizer is not None
    ids = omni.tokenizer.encode(PLAIN)
    for begin in range(1, len(ids)):
        for end in range(begin + 1, min(begin + 4, len(ids)) + 1):
            yield omni.tokenizer.decode(ids[begin:end])


def test_a_stop_text_that_tokens_cut_never_leaks(client: TestClient, omni: MuOmni, says: Says) -> None:
    says(PLAIN)
    for stop in dict.fromkeys(boundaries(omni)):
        before = PLAIN[: PLAIN.index(stop)]
        assert "".join(deltas(client, stop=stop)) == before, stop
        choice = chat(client, stop=[stop, "never"]).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (before, "stop")


def test_what_is_held_back_for_a_stop_text_comes_with_the_end(client: TestClient, says: Says) -> None:
    says(PLAIN)
    for count in (1, 3, 8):
        stop = PLAIN[-count:] + "!"
        assert "".join(deltas(client, stop=stop)) == PLAIN  # the model ends it
        assert PLAIN.startswith(text := "".join(deltas(client, stop="mat. Hello there?", max_tokens=12)))
        assert text == chat(client, max_tokens=12).json()["choices"][0]["message"]["content"]  # its length ends it


def test_each_choice_ends_once_with_its_own_reason(client: TestClient, says: Says) -> None:
    says("Hello", PLAIN * 3)
    settings: dict[str, Any] = {"n": 2, "max_tokens": 20}
    whole = chat(client, **settings).json()
    reasons = [(choice["index"], choice["finish_reason"]) for choice in whole["choices"]]
    assert reasons == [(0, "stop"), (1, "length")]
    official = OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client)
    stream = official.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Hi"}], stream=True, **settings
    )
    ends: dict[int, list[str]] = {0: [], 1: []}
    for chunk in stream:
        for choice in chunk.choices:
            assert not ends[choice.index], "nothing follows the end of a choice"
            ends[choice.index] += [choice.finish_reason] if choice.finish_reason is not None else []
    assert ends == {0: ["stop"], 1: ["length"]}


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_usage_is_told_where_it_is_wanted(client: TestClient, says: Says, options: Any) -> None:
    says("Hello", "Hello there!")
    official = OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client)
    more: dict[str, Any] = {} if options is None else {"stream_options": options}
    chunks = list(
        official.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "Hi"}], stream=True, n=2, **more
        )
    )
    with_usage = [chunk for chunk in chunks if chunk.usage is not None]
    if options and options["include_usage"]:
        (last,) = with_usage
        assert last is chunks[-1] and last.choices == [] and last.usage is not None
        whole = chat(client, n=2).json()["usage"]
        assert last.usage.completion_tokens == whole["completion_tokens"] > 2
        assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    else:
        assert not with_usage and all(chunk.choices for chunk in chunks)
