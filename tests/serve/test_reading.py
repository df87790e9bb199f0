"""Nothing of this machine or its network is read for a request, whatever names it: a picture lies where paths point."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(max_tokens=1)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture that a path finds, from everywhere and from the working directory."""
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "picture.png")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        pytest.fail("somebody connects")

    monkeypatch.setattr(socket.socket, "connect", refuses)
    monkeypatch.setattr(socket, "getaddrinfo", refuses)


def places(file: str) -> list[str]:
    urls = ["http://127.0.0.1:1/x.png", "https://169.254.169.254/latest", "ftp://x/y", "s3://x/y", "//127.0.0.1/x.png"]
    return [file, f"file://{file}", f"FILE://{file}", f"file:{file}", "picture.png", "./picture.png", *urls]


def parts(place: str) -> list[dict[str, Any]]:
    sources: list[Any] = [place, {"url": place}, {"path": place}, {"data": place}, {"bytes": place}]
    sources += [{"url": place, "archive": "x.zip"}, {"path": "picture.png", "archive": place}, [place]]
    kinds = ["image_url", "input_image", "image", "input_audio", "audio", "audio_url", "video", "video_url", "file"]
    made: list[dict[str, Any]] = []
    for kind in kinds:
        made += [{"type": kind, kind: source} for source in sources]
        made += [{"type": kind, key: place} for key in ("url", "path", "image_url", "file_url", "file_id", "data")]
    return made


def test_no_part_of_a_message_reads_a_file_or_an_address(client: TestClient, file: str) -> None:
    text = {"type": "text", "text": "What is this?"}
    for place in places(file)[::3]:
        for part in parts(place):
            for path, body in {
                "/v1/chat/completions": {"messages": [{"role": "user", "content": [part, text]}]},
                "/v1/responses": {"input": [{"role": "user", "content": [part]}]},
            }.items():
                reply = client.post(path, json=body)
                assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), (
                    path,
                    part,
                )


def test_a_text_that_names_a_file_is_a_text(client: TestClient, file: str) -> None:
    """Also in the forms that prompts have elsewhere in the library."""
    for place in places(file):
        for content in (place, [{"type": "text", "text": place}]):
            reply = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
            assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 0
        for messages in ([{"type": "image", "path": place}], [place], place, {"path": place}):
            assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 400
        assert client.post("/v1/completions", json={"prompt": place}).json()["usage"]["prompt_tokens"] > 1
        for prompt in ({"path": place}, [{"path": place}], [place]):
            assert client.post("/v1/completions", json={"prompt": prompt}).status_code == 400


def test_a_form_names_its_file_and_does_not_choose_it(client: TestClient, file: str) -> None:
    for place in places(file):
        for fields in ({"file": place}, {"file": "", "path": place}, {"url": place}):
            reply = client.post("/v1/audio/transcriptions", data=fields, files={"x": b""})
            assert reply.status_code == 400, fields
        reply = client.post("/v1/audio/transcriptions", files={"file": (place, b"no sound")})
        assert reply.status_code == 400
