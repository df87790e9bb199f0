"""`/v1/audio/transcriptions`: forms in, text out, whatever the client sends and whenever it leaves."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from starlette.testclient import TestClient

from muomni import MuOmni
from muomni.serve.transcriptions import Transcription
from tests.data.media.containers import sound
from tests.serve.conftest import Running, run
from tests.serve.test_leaving import all_free, until

PATH = "/v1/audio/transcriptions"


def recording(seconds: float, seed: int = 0) -> bytes:
    """Tones with pauses, as WAV."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    pitch = np.random.default_rng(seed).uniform(200, 2000, round(seconds) + 2)[time.astype(int)]
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(2 * np.pi * pitch * time) * (time % 1 < 0.6), 16_000, format="WAV")
    return out.getvalue()


def error(reply: Any) -> tuple[int, str | None, str | None]:
    body = reply.json()["error"]
    return reply.status_code, body["param"], body["code"]


@pytest.mark.parametrize("seconds", [1.2, 25])
def test_the_official_client_gets_what_transcribe_gives(client: OpenAI, alone: MuOmni, seconds: float) -> None:
    content = recording(seconds)
    (expected,) = alone.transcribe([content])
    reply = client.audio.transcriptions.create(model="nano", file=("a.wav", content))
    assert reply.text == expected.text
    usage = reply.usage
    assert usage is not None and usage.type == "tokens"
    assert usage.input_token_details is not None
    assert 12 * seconds < (usage.input_token_details.audio_tokens or 0) < 14 * seconds
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > usage.output_tokens > 0
    events = list(client.audio.transcriptions.create(model="nano", file=("a.wav", content), stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    done = events[-1]
    assert done.type == "transcript.text.done" and done.text == expected.text
    assert done.usage is not None and done.usage.to_dict() == usage.to_dict()
    assert "".join(event.delta for event in events[:-1]) == expected.text  # type: ignore[union-attr]
    text = client.audio.transcriptions.create(model="nano", file=("a.wav", content), response_format="text")
    assert text == f"{expected.text}\n"


def test_many_at_once_each_get_their_own(server: Running, alone: MuOmni) -> None:
    contents = [recording(1 + seed / 3, seed) for seed in range(6)]

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            create = client.audio.transcriptions.create
            asked = [create(model="nano", file=("a.wav", content)) for content in contents]
            return [reply.text for reply in await asyncio.gather(*asked)]

    assert run(ask()) == [each.text for each in alone.transcribe(contents)]


def test_what_browsers_record_is_heard(local: TestClient, alone: MuOmni) -> None:
    for form in ("webm", "m4a", "mp4"):
        content = sound(form, live=form == "webm")
        # Neither name nor type says what it is.
        for name, kind in ((f"a.{form}", "audio/webm;codecs=opus"), ("blob", "audio/x-wav")):
            reply = local.post(PATH, files={"file": (name, content, kind)})
            assert reply.json()["text"] == alone.transcribe([content])[0].text
    chat = {"type": "input_audio", "input_audio": {"format": "wav"}}
    chat["input_audio"]["data"] = "data:audio/webm;codecs=opus;base64," + base64.b64encode(sound()).decode()
    question = {"type": "text", "text": "What is said?"}
    body = {"messages": [{"role": "user", "content": [chat, question]}], "temperature": 0, "max_tokens": 60}
    reply = local.post("/v1/chat/completions", json=body)
    heard = " ".join(reply.json()["choices"][0]["message"]["content"].split())
    assert heard == alone.transcribe([sound()], max_new_tokens=60)[0].text


def test_options_are_honoured_or_refused(local: TestClient, alone: MuOmni) -> None:
    content = recording(1)
    file = {"file": ("a.wav", content)}
    hinted = local.post(PATH, files=file, data={"prompt": "The cat", "temperature": "0"})
    assert hinted.json()["text"] == alone.transcribe([content], hint="The cat")[0].text
    assert hinted.json()["text"] != alone.transcribe([content])[0].text
    plain = {"language": "", "model": "nano", "chunking_strategy": "auto", "stream": "false", "temperature": ""}
    assert "x-ignored-parameters" not in local.post(PATH, files=file, data=plain).headers
    named = local.post(PATH, files=file, data={"language": "de-AT", "colour": "red"})
    assert named.status_code == 200 and named.headers["x-ignored-parameters"] == "colour, language"
    for key, value in (
        ("response_format", "srt"),
        ("response_format", "vtt"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "word"),
        ("include[]", "logprobs"),
        ("chunking_strategy", "server_vad"),
        ("temperature", "-1"),
        ("temperature", "warm"),
        ("prompt", "the cat " * 100),
        ("language", "a language"),
        ("stream", "perhaps"),
        ("response_format", "yaml"),
    ):
        status, param, code = error(local.post(PATH, files=file, data={key: value}))
        assert (status, param) == (400, key.removesuffix("[]")) and code, (key, value)
    assert error(local.post(PATH, files=file, data={"model": "../etc"}))[:2] == (404, "model")
    with_times = local.post(PATH, files=file, data={"response_format": "srt"}).json()["error"]["message"]
    assert "no times" in with_times


def test_forms_that_are_wrong(local: TestClient, in_process: Callable[..., TestClient]) -> None:
    file = ("a.wav", recording(1))
    assert error(local.post(PATH, files={"other": file}))[:2] == (400, "other")
    assert error(local.post(PATH, files={"model": (None, "nano")}))[:2] == (400, "file")
    assert error(local.post(PATH, files={"file": (None, "text")}))[:2] == (400, "file")
    assert local.post(PATH, files=[("file", file), ("file", file)]).status_code == 400
    twice: list[Any] = [("file", file), ("model", (None, "nano")), ("model", (None, "nano"))]
    assert error(local.post(PATH, files=twice))[:2] == (400, "model")
    many: list[Any] = [("file", file), *((f"f{number}", (None, "x")) for number in range(40))]
    assert "Too many fields" in local.post(PATH, files=many).json()["error"]["message"]
    large = local.post(PATH, files={"file": file}, data={"prompt": "x" * 70_000})
    assert (large.status_code, "64KB" in large.json()["error"]["message"]) == (400, True)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=y"):
        reply = local.post(PATH, content=b"--x\r\nnothing", headers={"content-type": kind})
        assert reply.status_code == 400 and reply.json()["error"]["message"]
    for content in (b"", b"\0" * 99, b"This is no sound, but a text of some length.", sound()[:2000]):
        status, param, _ = error(local.post(PATH, files={"file": ("a.wav", content)}))
        assert (status, param) == (400, "file")
    told = local.post(PATH, files={"file": ("a.wav", b"This is no sound, but a text.")}).json()["error"]["message"]
    assert told.startswith("a.wav: is no whole sound in WAV, FLAC, OGG or MP3")
    small = in_process(max_upload=20_000, max_transcribed_s=0.8)
    assert error(small.post(PATH, files={"file": file}))[::2] == (413, "request_too_large")
    assert error(small.post(PATH, files={"file": ("a.webm", sound("webm", 0.9))}))[:2] == (400, "file")
    assert small.post(PATH, files={"file": ("a.webm", sound("webm", 0.5))}).status_code == 200


def test_bytes_are_counted_while_they_are_read(serving: Callable[..., Any]) -> None:
    with serving(max_upload=100_000) as server:
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        pieces = [head, *([b"\0" * 65_536] * 40), b"\r\n--x--\r\n"]
        kind = {"content-type": "multipart/form-data; boundary=x"}
        reply = server.http.post(PATH, content=iter(pieces), headers=kind)  # no length is announced
        assert error(reply)[::2] == (413, "request_too_large")
        reply = server.http.post(PATH, files={"file": ("a.wav", recording(1))})
        assert reply.status_code == 200 and all_free(server)
        for origin, status in (("http://evil.example", 403), (server.url, 200)):
            reply = server.http.post(PATH, files={"file": ("a.wav", recording(1))}, headers={"origin": origin})
            assert reply.status_code == status
        reply = server.http.post(PATH, json={"file": "a"})
        assert error(reply)[::2] == (415, "unsupported_media_type")


def test_a_model_that_does_not_hear(nano_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.serve.app import make_app
    from muomni.serve.engine import ServingEngine
    from muomni.serve.settings import ServerSettings

    settings = ServerSettings(model_name="nano", slots=1)
    engine = ServingEngine(MuOmni.from_pretrained(nano_folder, device="cpu"), settings)
    try:
        client = TestClient(make_app(engine, settings), "http://localhost", raise_server_exceptions=False)
        reply = client.post(PATH, files={"file": ("a.wav", recording(1))})
        assert reply.status_code == 400 and "no audio encoder" in reply.json()["error"]["message"]
    finally:
        engine.engine.close()


def leave(server: Running, content: bytes, *, stream: bool, read: int) -> None:
    """Sends a sound, reads so many bytes of the answer, and is gone."""
    parts = [b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + b"\r\n"]
    if stream:
        parts.append(b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n')
    body = b"".join([*parts, b"--x--\r\n"])
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=x"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        if read:
            connection.recv(read)


def test_whoever_leaves_gives_everything_back(serving: Callable[..., Any]) -> None:
    content = recording(40)
    with serving(slots=1, max_waiting=8) as server:
        expected = server.chat().json()["choices"]
        for stream, read in ((False, 0), (True, 0), (True, 1), (True, 300)):
            for _ in range(2):
                leave(server, content, stream=stream, read=read)
            assert until(lambda: all_free(server)), (stream, read)
        assert server.chat().json()["choices"] == expected


def test_what_fails_in_the_middle_is_one_event(local: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, calls = Transcription._submit, []

    async def second_fails(self: Transcription, piece: Any) -> Any:
        calls.append(piece)
        if len(calls) == 2:
            raise RuntimeError("a bug with a secret")
        return await submit(self, piece)

    monkeypatch.setattr(Transcription, "_submit", second_fails)
    reply = local.post(PATH, files={"file": ("a.wav", recording(25))}, data={"stream": "true"})
    lines = reply.text.split("\n\n")
    assert reply.status_code == 200 and "secret" not in reply.text and "done" not in reply.text
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error" and lines[-1] == ""
    calls.clear()
    assert local.post(PATH, files={"file": ("a.wav", recording(25))}).status_code == 500


def test_a_full_server_refuses_before_it_reads(serving: Callable[..., Any]) -> None:
    with serving(slots=1, max_waiting=0) as server, server.engine.place():
        reply = server.http.post(PATH, files={"file": ("a.wav", b"x")})
        assert error(reply)[::2] == (503, "server_overloaded") and int(reply.headers["retry-after"]) > 0


def test_the_loop_goes_on_while_a_long_sound_is_decoded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, go_on = threading.Event(), threading.Event()
    pieces = Transcription._pieces

    def slow(*args: Any) -> Any:
        decoding.set()
        assert go_on.wait(20)
        return pieces(*args)

    monkeypatch.setattr(Transcription, "_pieces", slow)
    replies: list[Any] = []
    post = threading.Thread(
        target=lambda: replies.append(server.http.post(PATH, files={"file": ("a.wav", recording(1))}))
    )
    post.start()
    assert decoding.wait(10)
    assert server.http.get("/health").status_code == 200
    go_on.set()
    post.join(20)
    assert replies[0].status_code == 200


def test_errors_reach_the_official_client(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="no whole sound") as raised:
        client.audio.transcriptions.create(model="nano", file=("a.mp3", b"no sound at all, but text"))
    assert raised.value.param == "file" and raised.value.code == "invalid_value"
    with pytest.raises(NotFoundError):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", recording(1)))
