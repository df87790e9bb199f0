import json
import socket
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from muomni.serve.guard import host_name
from muomni.serve.settings import is_loopback, read_keys
from tests.serve.conftest import Running

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def post(server: Running, headers: dict[str, str], content: bytes | None = None) -> httpx2.Response:
    body = json.dumps(BODY).encode() if content is None else content
    return server.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json", **headers}
    )


def test_only_names_of_the_loopback_are_answered(server: Running) -> None:
    port = server.url.rpartition(":")[2]
    for host in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}", "[::1]:80", "127.9.9.9"):
        assert post(server, {"host": host}).status_code == 200, host
    wrong = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "10.0.0.1", "0.0.0.0"]
    wrong += ["evil.example@127.0.0.1", "localhost/", "localhost#", "localhost?", "localhost:80:80", "localhost:x"]
    wrong += ["[::1]evil.example", "[::ffff:10.0.0.1]", "[fe80::1]", "[localhost]", "::1", "127.1", "2130706433"]
    wrong += ["localhost.", "localhost, evil.example", "localhost evil.example", "localhost\\evil.example", ":80", ""]
    for host in wrong:
        reply = post(server, {"host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "wrong_host"), host


def test_pages_of_other_origins_are_refused(server: Running, serving: Callable[..., Any]) -> None:
    assert post(server, {"origin": server.url}).status_code == 200
    wrong = [
        "http://evil.example",
        "null",
        f"{server.url}.evil.example",
        "http://127.0.0.1:1",
        "http://[",
        "",
        "http://",
    ]
    wrong += [server.url.replace("http", "ftp"), server.url.replace("//", "//evil@"), server.url.removeprefix("http:")]
    for origin in wrong:
        assert post(server, {"origin": origin}).status_code == 403, origin
    with serving(origins=("http://page.example",)) as other:
        reply = post(other, {"origin": "http://page.example"})
        assert reply.headers["access-control-allow-origin"] == "http://page.example"
        preflight = other.http.options("/v1/chat/completions", headers={"origin": "http://page.example"})
        assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (204, "GET, POST")
        assert post(other, {"origin": "http://page.example.evil"}).status_code == 403


def test_a_key_opens_everything_but_health(serving: Callable[..., Any]) -> None:
    with serving(keys=("first", "schlüssel")) as server:
        assert server.http.get("/health").status_code == 200
        for path in ("/v1/models", "/v1/models/nano", "/nowhere"):
            reply = server.http.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key"), path
        for wrong in ("Bearer", "Bearer firs", "Bearer first2", "Basic first", "first"):
            assert post(server, {"authorization": wrong}).status_code == 401, wrong
        assert post(server, {"authorization": "Bearer first"}).status_code == 200
        assert post(server, {"authorization": "bearer first"}).status_code == 200
        own = {"authorization": "Bearer schlüssel".encode(), "content-type": b"application/json"}
        assert server.http.get("/v1/models", headers=own).status_code == 200


def test_a_form_or_plain_text_is_refused(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert post(server, {"content-type": kind}).status_code == 415, kind
    assert post(server, {"content-type": "application/json; charset=utf-8"}).status_code == 200


def test_a_body_is_counted_while_it_is_read(serving: Callable[..., Any]) -> None:
    with serving(max_body=1 << 20) as server:
        large = b" " * (1 << 20) + json.dumps(BODY).encode()
        reply = post(server, {}, large)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        pieces = (large[start : start + 65536] for start in range(0, len(large), 65536))
        headers = {"content-type": "application/json"}
        reply = server.http.post("/v1/chat/completions", content=pieces, headers=headers)
        assert reply.status_code == 413
        assert post(server, {}).status_code == 200
        assert server.engine.running == 0


def test_broken_requests_do_not_end_the_server(server: Running) -> None:
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    for raw in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
    for body in (b"", b"null", b"[]", b"{", b'{"messages": 3}', b"[" * 100_000, b'{"messages": [1]}', b"\xff"):
        assert post(server, {}, body).status_code == 400, body[:20]
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "name"), [("a:1", "a"), ("[::1]:1", "::1"), ("", ""), ("a@b", "b"), ("[", ""), ("A.B", "a.b")]
)
def test_names_of_hosts(host: str, name: str) -> None:
    assert host_name(host) == name


def test_loopback_is_known_by_name_and_address() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "::1", "127.3.2.1"]))
    assert not any(map(is_loopback, ["", "0.0.0.0", "::", "10.0.0.1", "localhost.", "example.org"]))


def test_keys_of_a_file() -> None:
    assert read_keys(["# mine", " one ", "", "two"]) == ("one", "two")
