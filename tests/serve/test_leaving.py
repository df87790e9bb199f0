"""Clients that leave, servers that are full, and engines that end."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.serve.conftest import Running

LONG = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "ignore_eos": True}


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def leave(server: Running, body: dict[str, Any], read: int = 0, path: str = "/v1/chat/completions") -> None:
    """Sends a request, reads so many bytes of the answer, and is gone."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""])
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        if read:
            connection.recv(read)


def all_free(server: Running) -> bool:
    return server.engine.running == 0 and not server.engine.engine.active


def test_a_client_that_leaves_frees_its_slot(serving: Callable[..., Any]) -> None:
    with serving(slots=1, max_waiting=8) as server:
        expected = server.chat().json()["choices"]
        for stream in (True, False):
            for read in (0, 1, 600) if stream else (0,):
                for _ in range(3):  # one that runs, two in the queue
                    leave(server, {**LONG, "stream": stream}, read)
                assert until(lambda: all_free(server)), (stream, read)
        assert server.chat().json()["choices"] == expected


def test_a_waiting_client_that_leaves_changes_nobodys_reply(serving: Callable[..., Any]) -> None:
    with serving(slots=2, max_waiting=20) as server:
        expected = server.chat(max_tokens=40, deterministic=True).json()["choices"]
        for _ in range(6):
            leave(server, LONG)
        assert server.chat(max_tokens=40, deterministic=True).json()["choices"] == expected
        assert until(lambda: all_free(server))


def test_a_full_server_refuses_before_it_reads(serving: Callable[..., Any]) -> None:
    with serving(slots=1, max_waiting=0) as server:
        place = server.engine.place()
        place.__enter__()
        reply = server.chat()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_overloaded")
        assert int(reply.headers["retry-after"]) > 0
        place.__exit__(None, None, None)
        assert server.chat().status_code == 200


def test_a_request_that_fails_in_the_middle_ends_with_an_error(serving: Callable[..., Any], monkeypatch: Any) -> None:
    with serving() as server:
        core = server.engine.engine._core
        deliver = core._deliver
        calls = []

        def fails(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("a bug with a secret")
            deliver(*args)

        monkeypatch.setattr(core, "_deliver", fails)
        lines = server.chat(stream=True, max_tokens=100, temperature=1.0).text.split("\n\n")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert "secret" not in "".join(lines)
        assert "[DONE]" not in "".join(lines)
        assert until(lambda: all_free(server))
        assert server.chat().status_code == 200


def test_health_tells_when_the_engine_is_gone(serving: Callable[..., Any]) -> None:
    with serving() as server:
        assert server.http.get("/health").json() == {"status": "idle"}
        server.engine.engine.close()
        reply = server.http.get("/health")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "dead")
        assert server.chat().status_code == 503
