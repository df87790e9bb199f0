"""What holds for every route of the application, whichever are added."""

import hmac
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from muomni.serve.server import uvicorn_config
from muomni.serve.settings import ServerSettings

# Besides the page's files.
OPEN = {"/health", "/v1/health"}


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(keys=("key",))


def routes(client: TestClient) -> list[Route]:
    found = [route for route in client.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    others = [route for route in client.app.routes if not isinstance(route, Route | WebSocketRoute)]  # type: ignore[attr-defined]
    assert len(found) > 10 and not others  # a mount would hide what lies behind it
    return found


def sockets(client: TestClient) -> list[str]:
    found = [route.path for route in client.app.routes if isinstance(route, WebSocketRoute)]  # type: ignore[attr-defined]
    assert found
    return found


def path_of(route: Route) -> str:
    return route.path.replace("{model:path}", "nano")


def method_of(route: Route) -> str:
    (method,) = (route.methods or set()) - {"HEAD"}
    return method


def error(reply: Any) -> dict[str, Any]:
    body = reply.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"] and body["type"] and body["code"]
    return dict(body)


KEY = {"authorization": "Bearer key"}


def test_each_needs_the_key_but_health_and_the_page(client: TestClient) -> None:
    for route in routes(client):
        wants = route.path not in OPEN and "Content-Security-Policy" not in client.get(path_of(route)).headers
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic key"}):
            reply = client.request(method_of(route), path_of(route), headers=headers)
            assert (reply.status_code == 401) == wants, route.path
            if wants:
                assert error(reply)["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"


def test_each_refuses_other_methods_in_the_error_shape(client: TestClient) -> None:
    for route in routes(client):
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS"} - {method_of(route)}:
            headers = {**KEY, "content-type": "application/json"}
            reply = client.request(method, path_of(route), headers=headers)
            if reply.status_code == 415:  # what takes a form says so first
                continue
            assert (reply.status_code, error(reply)["code"]) == (405, "wrong_method"), (method, route.path)
            assert method_of(route) in reply.headers["allow"]


def test_each_that_reads_a_body_wants_its_type_said(client: TestClient) -> None:
    """A page elsewhere can send text, forms and bodies without a type, and no preflight asks before."""
    for route in routes(client):
        if method_of(route) != "POST":
            continue
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp", "text/json"):
            reply = client.post(path_of(route), content=b"{}", headers={**KEY, "content-type": kind})
            assert (reply.status_code, error(reply)["code"]) == (415, "unsupported_media_type"), (kind, route.path)


def test_each_refuses_other_hosts_and_origins(client: TestClient) -> None:
    for route in routes(client):
        for headers, status, code in (
            ({"host": "evil.example"}, 421, "wrong_host"),
            ({"origin": "http://evil.example"}, 403, "wrong_origin"),
            ({"origin": "null"}, 403, "wrong_origin"),
        ):
            reply = client.request(method_of(route), path_of(route), headers={**KEY, **headers})
            assert (reply.status_code, error(reply)["code"]) == (status, code), route.path
            assert "access-control-allow-origin" not in reply.headers


def test_each_bounds_its_body(client: TestClient) -> None:
    for route in routes(client):
        if method_of(route) == "POST":
            for length in (str(1 << 40), "9" * 5000, "-1", "+1", "1_0", "x"):
                kinds = ("application/json", "multipart/form-data; boundary=x")
                headers = {**KEY, "content-length": length}
                codes = {
                    error(client.post(path_of(route), content=b"{}", headers={**headers, "content-type": kind}))["code"]
                    for kind in kinds
                }
                assert codes == {"request_too_large", "unsupported_media_type"}, (length, route.path)


def test_what_is_nowhere_is_told_in_the_error_shape(client: TestClient) -> None:
    for path in (
        "/nowhere",
        "/v1",
        "/v1/chat/completions/",
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/%00",
        "/app.js%00",
    ):
        reply = client.get(path, headers=KEY, follow_redirects=False)
        assert (reply.status_code, error(reply)["code"]) == (404, "not_found"), path


def upgraded(client: TestClient, path: str, headers: dict[str, str], protocols: list[str] | None = None) -> Any:
    """The answer to a handshake that is refused, or the protocol of one that is not."""
    try:
        with client.websocket_connect(path, protocols, headers={"host": "localhost", **headers}) as websocket:
            return websocket.accepted_subprotocol
    except WebSocketDenialResponse as denied:
        return denied


def test_each_socket_refuses_hosts_origins_and_keys_before_it_opens(client: TestClient) -> None:
    for path in sockets(client):
        for headers, status, code in (
            ({}, 401, "invalid_api_key"),
            ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
            ({**KEY, "host": "evil.example"}, 421, "wrong_host"),
            ({**KEY, "origin": "http://evil.example"}, 403, "wrong_origin"),
            ({**KEY, "origin": "http://localhost.evil.example"}, 403, "wrong_origin"),
            ({**KEY, "origin": "null"}, 403, "wrong_origin"),
            ({**KEY, "origin": "http://["}, 403, "wrong_origin"),
        ):
            denied = upgraded(client, path, headers)
            assert (denied.status_code, error(denied)["code"]) == (status, code), headers
        for wrong in (["realtime"], ["realtime", "openai-insecure-api-key.wrong"], ["openai-insecure-api-key."]):
            assert upgraded(client, path, {}, wrong).status_code == 401
        assert upgraded(client, f"{path}?key=key&api_key=key", {}).status_code == 401  # no key in a URL
        assert upgraded(client, path, {**KEY, "origin": "http://localhost"}) is None
        assert upgraded(client, path, {}, ["realtime", "openai-insecure-api-key.key"]) == "realtime"


def test_all_keys_are_compared_in_constant_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def counting(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare(given, known)

    monkeypatch.setattr("muomni.serve.guard.hmac.compare_digest", counting)
    for key in ("a", "key", "\x7f" * 1000):
        compared.clear()
        client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert compared == [b"key"]


def test_keys_and_prompts_are_nowhere_in_logs_errors_or_settings(
    in_process: Callable[..., TestClient], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = in_process(keys=("sk-secret",))
    caplog.set_level(logging.DEBUG)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("muomni.serve.messages.normalize", fails)
    body = {"messages": [{"role": "user", "content": "my private words"}]}
    answers = [
        client.post("/v1/chat/completions?x=sk-secret", json=body, headers={"authorization": f"Bearer {key}"})
        for key in ("sk-secret", "sk-secret2")
    ]
    assert [answer.status_code for answer in answers] == [500, 401]
    logged = "".join(f"{record.getMessage()}{record.exc_text}" for record in caplog.records if record.name != "httpx2")
    told = logged + "".join(answer.text + str(answer.headers) for answer in answers)
    assert "inside" in logged and "inside" not in "".join(answer.text for answer in answers)
    assert "sk-secret" not in told and "private" not in told
    assert "sk-secret" not in repr(ServerSettings(keys=("sk-secret",)))


def test_pages_are_allowed_by_list_and_never_with_credentials(in_process: Callable[..., TestClient]) -> None:
    client = in_process(origins=("https://one.example", "https://two.example"))
    for route in routes(client):
        for origin in ("https://one.example", "https://two.example"):
            for method in (method_of(route), "OPTIONS"):
                headers = client.request(method, path_of(route), headers={"origin": origin}).headers
                assert headers["access-control-allow-origin"] == origin
                assert "Origin" in headers["vary"]
                assert "access-control-allow-credentials" not in headers
        for origin in ("https://three.example", "http://one.example", "https://one.example.evil", "*"):
            reply = client.request("OPTIONS", path_of(route), headers={"origin": origin})
            assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers


def test_frames_are_not_inflated_and_requests_not_logged() -> None:
    async def app(*_: Any) -> None:
        """Never called."""

    config = uvicorn_config(app)
    assert config.ws_per_message_deflate is False and config.ws_max_size <= 16 << 20
    assert config.access_log is False and config.proxy_headers is False
