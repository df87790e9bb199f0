import asyncio
import base64
import copy
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from openai import OpenAI

from muomni import MuOmni
from muomni.data.text.tokenizer import Detokenizer
from muomni.serve.speech import FORMATS, Spoken
from tests.infer.speech.models import make_speaking
from tests.serve.conftest import Running, run, running
from tests.serve.test_chat import events
from tests.serve.test_leaving import until
from tests.serve.test_metrics import values

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

TEXT = "The cat sat on the mat. The dog ate the bone."


@pytest.fixture(scope="module")
def model(small_tokenizer: "Tokenizer") -> MuOmni:
    return make_speaking(small_tokenizer)


@pytest.fixture(scope="module")
def server(model: MuOmni) -> Iterator[Running]:
    with running(copy.deepcopy(model), slots=4, max_speaking=4) as server:
        yield server


def spoken(model: MuOmni, text: str, **settings: Any) -> Any:
    """What `say` gives, at 24 kHz."""
    speech = model.say(text, **settings)
    assert speech.audio is not None
    return soxr.resample(speech.audio.numpy(), speech.sample_rate, 24_000)


def say(server: Running, **body: Any) -> Any:
    return server.http.post("/v1/audio/speech", json={"input": TEXT, "seed": 3, **body})


def samples(pcm: bytes) -> Any:
    return np.frombuffer(pcm, "<i2") / 32767


def same(one: Any, other: Any) -> bool:
    length = min(len(one), len(other))
    return abs(len(one) - len(other)) < 50 and float(np.abs(one[:length] - other[:length]).max()) < 2e-3


def test_speech_is_what_say_gives_in_every_format(server: Running, model: MuOmni) -> None:
    expected = spoken(model, TEXT, seed=3)
    pcm = say(server, response_format="pcm")
    assert pcm.headers["content-type"] == "audio/pcm"
    assert same(samples(pcm.content), expected)
    wav = say(server, response_format="wav").content
    assert wav[:4] == b"RIFF" and wav.count(b"RIFF") == 1
    assert wav[44:] == pcm.content
    sse = say(server, response_format="pcm", stream_format="sse").text.split("\n\n")[:-1]
    parts = [json.loads(line.removeprefix("data: ")) for line in sse]
    assert parts[-1]["type"] == "speech.audio.done" and set(parts[-1]["usage"]) > {"total_tokens"}
    assert b"".join(base64.b64decode(part["audio"]) for part in parts[:-1]) == pcm.content
    assert len(parts) > 3
    for name in ("flac", "mp3", "opus"):
        sound, rate = soundfile.read(io.BytesIO(say(server, response_format=name).content))
        assert rate in (24_000, 48_000)
        assert abs(len(sound) / rate - len(expected) / 24_000) < 0.1


def test_the_official_client_speaks(server: Running, model: MuOmni) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "nano", "voice": "ben", "response_format": "pcm"}
    reply = client.audio.speech.create(input=TEXT, extra_body={"seed": 3}, **options)
    assert same(samples(reply.content), spoken(model, TEXT, seed=3, voice="ben"))


def test_many_listeners_hear_their_own_text(server: Running, model: MuOmni) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = ["The cat sat.", "The dog ate the bone.", "Hello there!", "What is this?"]
    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(lambda text: say(server, input=text, response_format="pcm").content, texts))
    for text, sound in zip(texts, heard, strict=True):
        assert same(samples(sound), spoken(model, text, seed=3))


def test_eight_listeners_hear_what_each_hears_alone_while_others_read(model: MuOmni) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"The {noun} sat. What is this?" for noun in ("cat", "dog", "mat", "bone")]
    expected = [spoken(model, text, seed=3) for text in texts]
    with running(copy.deepcopy(model), slots=4, max_speaking=8) as server, ThreadPoolExecutor(11) as pool:
        reading = [pool.submit(server.chat, max_tokens=200) for _ in range(3)]
        listening = [pool.submit(say, server, input=text, response_format="pcm") for text in texts * 2]
        for number, heard in enumerate(listening):
            assert same(samples(heard.result().content), expected[number % 4])
        assert all(answer.result().status_code == 200 for answer in reading)
        counted = values(server)
        audio_s = sum(len(each.result().content) for each in listening) / 48_000
    assert abs(counted["muomni:audio_seconds_total"] - audio_s) < 0.1
    assert counted["muomni:time_to_first_audio_seconds_count"] == 8
    assert counted["muomni:audio_real_time_factor_count"] == 8
    assert counted["muomni:speech_streams"] == 0


def test_a_chat_is_spoken(server: Running, model: MuOmni) -> None:
    settings = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "pcm16"}, "seed": 2}
    whole = server.chat("Hello there!", max_tokens=30, **settings)
    message = whole.json()["choices"][0]["message"]
    assert message["content"] is None
    expected = model.chat("Hello there!", temperature=0, max_new_tokens=30).text
    assert message["audio"]["transcript"] == expected
    sound = base64.b64decode(message["audio"]["data"])
    assert same(samples(sound), spoken(model, expected, seed=2))
    chunks = list(events(server.chat("Hello there!", max_tokens=30, stream=True, **settings).text))
    deltas = [chunk["choices"][0]["delta"].get("audio", {}) for chunk in chunks]
    assert "".join(delta.get("transcript", "") for delta in deltas) == expected
    pieces = [delta["data"] for delta in deltas if "data" in delta]
    assert all("=" not in piece for piece in pieces[:-1])
    assert base64.b64decode("".join(pieces)) == sound
    assert sum("id" in delta for delta in deltas) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_reply_without_a_letter_is_silent(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detokenizer, "push", lambda _, ids: "!" * len(list(ids)))
    settings = {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}, "max_tokens": 3}
    message = server.chat(**settings).json()["choices"][0]["message"]
    assert (message["audio"]["transcript"], message["audio"]["data"]) == ("!!!", "")
    chunks = list(events(server.chat(stream=True, **settings).text))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert not any("data" in chunk["choices"][0]["delta"].get("audio", {}) for chunk in chunks)
    assert server.engine.speaking == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": ""},
        {"input": "x" * 5000},
        {"voice": "nobody"},
        {"response_format": "aac"},
        {"speed": 2},
        {"instructions": "whisper"},
        {"model": "other"},
    ],
)
def test_mistakes_are_told(server: Running, wrong: dict[str, Any]) -> None:
    reply = say(server, **wrong)
    assert reply.status_code in (400, 404)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert server.engine.speaking == 0


def test_what_has_nothing_to_say_is_an_error(server: Running) -> None:
    assert say(server, input="... !?").status_code == 400
    assert server.engine.speaking == 0


def test_a_listener_who_leaves_is_no_longer_computed(server: Running) -> None:
    body = json.dumps({"input": TEXT * 10, "response_format": "pcm"}).encode()
    lines = ["POST /v1/audio/speech HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    for read in (0, 100, 5000):
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(head + body)
            if read:
                connection.recv(read)
        assert until(lambda: server.engine.speaking == server.engine.running == 0), read
    speaker = server.engine.model.runtime.speakers._shared
    assert speaker is not None
    assert speaker.listeners == 0


def test_speech_is_not_computed_for_a_client_who_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    async def pieces(*_: Any, **__: Any) -> AsyncIterator[torch.Tensor]:
        for number in range(1000):
            made.append(number)
            yield torch.zeros(240)
            await asyncio.sleep(0)

    async def no_text() -> AsyncIterator[Any]:
        for _ in ():
            yield

    async def listen() -> int:
        spoken = Spoken(None, SimpleNamespace(sample_rate=16_000), FORMATS["pcm"])  # type: ignore[arg-type]
        deltas = spoken.deltas(no_text(), "a")
        for _ in range(3):
            await anext(deltas)
        await asyncio.sleep(0.05)
        so_far = len(made)
        await deltas.aclose()
        return so_far

    monkeypatch.setattr("muomni.serve.speech.spoken_pieces", pieces)
    assert 3 < run(listen()) < 30


def test_voices_and_modalities_are_listed(server: Running, serving: Callable[..., Any]) -> None:
    assert server.http.get("/v1/audio/voices").json() == {"voices": ["anna", "ben"]}
    assert server.http.get("/v1/models").json()["data"][0]["architecture"]["output_modalities"] == ["text", "audio"]
    with serving() as mute:
        assert mute.http.post("/v1/audio/speech", json={"input": "Hi"}).status_code == 400
        assert mute.chat(modalities=["text", "audio"]).status_code == 400


def test_more_listeners_than_places_are_refused(server: Running) -> None:
    places = [server.engine.speaking_place() for _ in range(4)]
    for place in places:
        place.__enter__()
    assert say(server).status_code == 503
    for place in places:
        place.__exit__(None, None, None)
    assert say(server).status_code == 200
