"""What holds for every route of the application, whichever are added."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

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
