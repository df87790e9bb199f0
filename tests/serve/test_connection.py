"""Raw HTTP: what clients send that is broken, half, slow or nothing, and answers that nobody reads."""

import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from muomni.serve.connection import Connection
from tests.serve.conftest import Running
from tests.serve.test_leaving import LONG, all_free, until

BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body)


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


@pytest.fixture
def impatient(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(Connection, "head_s", 0.3)
    monkeypatch.setattr(Connection, "unread_s", 0.3)
    with serving(body_timeout_s=0.3, slots=1, max_waiting=1) as server:
        yield server


@pytest.mark.parametrize(
    "broken",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n{}",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
        HEAD.replace(b"application/json", b"text/plain") + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_told_as_json(server: Running, broken: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with connected(server) as connection:
        connection.sendall(broken)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"413", b"415", b"421", b"501"), head
    assert b"application/json" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert until(lambda: all_free(server))
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_requests_sent_ahead_are_answered_in_turn(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall((HEAD + length(BODY) + BODY) * 3 + b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        connection.sendall(b"Connection: close\r\n\r\n")
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.rstrip().endswith(b'"}')


def test_a_client_that_sends_byte_by_byte_is_served(server: Running) -> None:
    with connected(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEAD + b"Connection: close\r\n" + length(BODY) + BODY:
            connection.sendall(bytes([byte]))
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_connections_that_say_nothing_are_closed(impatient: Running) -> None:
    """In their place others are answered all the time."""
    port = int(impatient.url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    for number, connection in enumerate(silent):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc"[: number % 30])
    assert impatient.http.get("/health").status_code == 200
    for connection in silent:
        assert connection.recv(100) == b""
        connection.close()


def test_a_head_that_never_ends_is_closed_also_behind_an_answer(impatient: Running) -> None:
    for begin in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with connected(impatient) as connection:
            connection.sendall(begin + b"GET / HTTP/1.1\r\n")
            end = time.monotonic() + 5
            with pytest.raises(OSError, match=r"."):
                while time.monotonic() < end:
                    connection.sendall(b"a: b\r\n")
                    time.sleep(0.05)


@pytest.mark.parametrize("body", [b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_never_ends_gives_its_place_back(impatient: Running, body: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(HEAD + body)
        assert until(lambda: impatient.engine.running == 1)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert until(lambda: all_free(impatient))


def test_an_upload_that_is_broken_off_gives_its_place_back(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    sizes = []
    for _ in range(4):
        for _ in range(250):
            with connected(server) as connection:
                connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 50_000)
        assert until(lambda: all_free(server))
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    # Had they been kept, each quarter would be 12.5 MB more.
    assert sizes[-1] - sizes[0] < 20 << 20
    assert until(lambda: all_free(server))
    assert server.http.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_a_client_that_does_not_read_is_gone(impatient: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.serve.sse.DONE", b"x" * (16 << 20))
    body = json.dumps({**LONG, "max_tokens": 4, "stream": True}).encode()
    with connected(impatient) as connection:
        connection.sendall(HEAD + length(body) + body)
        assert until(lambda: impatient.engine.running == 1)
        assert until(lambda: all_free(impatient), 5)
