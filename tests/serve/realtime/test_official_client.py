"""The official client against a server on a free port."""

import base64
import copy
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from muomni import MuOmni
from tests.serve.conftest import Running, run, running
from tests.serve.test_leaving import all_free, until

# The client's synchronous half uses websockets in a way that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


@pytest.fixture(scope="module")
def server(voice_model: MuOmni) -> Iterator[Running]:
    with running(copy.deepcopy(voice_model), slots=2) as server:
        yield server


def client_of(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_text_turn(server: Running) -> None:
    with client_of(server).realtime.connect(model="nano") as connection:
        connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"], "instructions": "Be nice."}
        )
        content: Any = [{"type": "input_text", "text": "Hello there!"}]
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        connection.response.create(response={"max_output_tokens": 12})
        text = ""
        for event in connection:
            assert type(event).__name__ != "UnknownEvent" and event.type != "error", event
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.output_text.done":
                assert event.text == text
            elif event.type == "response.done":
                assert event.response.status in ("completed", "incomplete")
                assert event.response.usage is not None and event.response.usage.input_tokens
                break
        assert text
    assert until(lambda: all_free(server))


def test_speech_is_heard_answered_and_interrupted(server: Running, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "speech" / "librispeech_sample" / "librispeech.zip") as archive:
        speech, rate = soundfile.read(io.BytesIO(archive.read("1688-142285-0003.flac")), dtype="float32")
    speech = soxr.resample(speech, rate, 24_000)
    sound = (np.concatenate((np.zeros(24_000), speech, np.zeros(36_000))) * 32767).astype("<i2").tobytes()

    async def talk() -> list[Any]:
        events = []
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        async with client.realtime.connect(model="nano") as connection:
            detection: Any = {"turn_detection": {"type": "server_vad", "silence_duration_ms": 800}}
            await connection.session.update(session={"type": "realtime", "audio": {"input": detection}})

            async def send() -> None:
                for start in range(0, len(sound), 4800):
                    piece = base64.b64encode(sound[start : start + 4800]).decode()
                    await connection.input_audio_buffer.append(audio=piece)

            await send()
            async for event in connection:
                events.append(event)
                assert event.type != "error", event
                started = sum(each.type == "input_audio_buffer.speech_started" for each in events)
                if event.type == "response.created" and started == 1:
                    await send()  # speaks into the response
                if event.type == "response.done" and started == 2:
                    await connection.response.cancel()
                    break
        return events

    events = run(talk())
    names = [event.type for event in events]
    first = names.index("input_audio_buffer.speech_started")
    assert names[first + 1 : first + 6] == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    started, stopped = events[first : first + 2]
    assert 500 < started.audio_start_ms < 1900
    assert 5500 < stopped.audio_end_ms < 8000
    assert until(lambda: all_free(server) and server.engine.speaking == 0)


def test_a_client_that_breaks_off_gives_everything_back(server: Running) -> None:
    url = f"ws{server.url.removeprefix('http')}/v1/realtime"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello there!"}]}
    for events in range(0, 12, 2):
        websocket = connect(url, open_timeout=10)
        websocket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        websocket.send(json.dumps({"type": "response.create"}))
        for _ in range(events):
            websocket.recv(timeout=10)
        websocket.socket.close()
        assert until(lambda: all_free(server) and server.engine.speaking == 0), events


def test_who_may_not_come_in_gets_a_status(server: Running) -> None:
    url = f"ws{server.url.removeprefix('http')}/v1"
    for path, status in (("realtime?model=other", 404), ("elsewhere", 403)):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{url}/{path}")
        assert refused.value.response.status_code == status
    with connect(f"{url}/realtime", subprotocols=["realtime", "openai-insecure-api-key.k"]) as websocket:  # type: ignore[list-item]
        assert websocket.subprotocol == "realtime"
        assert json.loads(websocket.recv(timeout=10))["type"] == "session.created"
