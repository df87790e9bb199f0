"""Clients that leave at each moment, whatever they asked for: slots are free after the step that is under way."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from muomni import MuOmni
from tests.infer.speech.models import make_speaking
from tests.serve.conftest import Running, running
from tests.serve.test_chat import picture_url
from tests.serve.test_connection import HEAD, connected, length
from tests.serve.test_leaving import all_free, until

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(small_tokenizer: "Tokenizer") -> MuOmni:
    return make_speaking(small_tokenizer, senses=True)


class Gate:
    """Lets the model thread take one step for each permit, or as many as it likes while open."""

    def __init__(self, core: Any) -> None:
        self._permits = threading.Semaphore(0)
        self._step = core.step
        self.open = True
        self.waiting = 0
        core.step = self

    def __call__(self) -> None:
        if not self.open:
            self.waiting += 1
            self._permits.acquire()
            self.waiting -= 1
        self._step()

    def step(self, steps: int = 1) -> None:
        self._permits.release(steps)

    def unlock(self) -> None:
        self.open = True
        self._permits.release(1000)


@pytest.fixture(scope="module")
def server(model: MuOmni) -> Iterator[Running]:
    with running(model, slots=1, max_waiting=4, max_speaking=2) as server:
        assert server.chat(PARTS).status_code == 200  # encodes the picture, which waits for the model thread
        yield server


@pytest.fixture
def gate(server: Running) -> Iterator[Gate]:
    core = server.engine.engine._core
    gate = Gate(core)
    yield gate
    gate.unlock()
    del core.step
    assert until(lambda: nothing_left(server))


def nothing_left(server: Running) -> bool:
    speaker = server.engine.model.runtime.speakers._shared
    return all_free(server) and server.engine.speaking == 0 and (speaker is None or speaker.listeners == 0)


PARTS = [{"type": "image_url", "image_url": {"url": picture_url()}}, {"type": "text", "text": "What is this?"}]
ASKED: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "speculating": {"temperature": 0, "speculate": True},
    "with a picture": {"messages": [{"role": "user", "content": PARTS}]},
    "spoken": {"modalities": ["text", "audio"]},
    "all of it": {
        "temperature": 0,
        "speculate": True,
        "modalities": ["text", "audio"],
        "messages": [{"role": "user", "content": PARTS}],
    },
    "twice": {"n": 2, "temperature": 1.0},
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("moment", ["in the queue", "in prefill", "while it is made"])
@pytest.mark.parametrize("name", ASKED)
def test_who_leaves_gives_all_back(server: Running, gate: Gate, name: str, moment: str, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hello there! " * 8}], "max_tokens": 150, "stream": stream}
    content = json.dumps({**body, **ASKED[name]}).encode()
    engine = server.engine.engine
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(gate.unlock)  # also where something fails: threads wait for it
        gate.open = False
        other = None
        if moment == "in the queue":
            settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0.9, "seed": 5, "deterministic": True}
            other = pool.submit(server.chat, "The cat sat on the mat.", **settings)
            assert until(lambda: gate.waiting == 1)
            gate.step()
            assert until(lambda: gate.waiting == 1 and engine.running == 1)
        others = engine.running
        with connected(server) as connection:
            connection.sendall(HEAD + length(content) + content)
            assert until(lambda: gate.waiting == 1 and engine.running + engine.waiting > others), moment
            if moment == "while it is made":
                begun = engine.steps
                gate.step(3)
                assert until(lambda: gate.waiting == 1 and engine.steps >= begun + 3)
        assert until(lambda: server.engine.running == (other is not None))
        gate.step()  # the one that is under way
        assert until(lambda: engine.running + engine.waiting == others), moment
        gate.unlock()
        if other is not None:
            reply = server.chat("The cat sat on the mat.", **settings).json()
            assert other.result().json()["choices"] == reply["choices"]
    assert until(lambda: nothing_left(server))


def test_a_listener_who_leaves_at_any_piece_gives_the_voice_back(server: Running) -> None:
    content = json.dumps({"input": "The cat sat on the mat. " * 10, "response_format": "wav"}).encode()
    head = HEAD.replace(b"/v1/chat/completions", b"/v1/audio/speech")
    for count in (0, 1, 44, 5000, 40_000):
        with connected(server) as connection:
            connection.sendall(head + length(content) + content)
            received = 0
            while received < count:
                received += len(connection.recv(4096))
        assert until(lambda: nothing_left(server)), count


def test_a_spoken_stream_has_one_header_and_sound_before_its_text_ends(server: Running) -> None:
    settings = {"modalities": ["text", "audio"], "audio": {"format": "wav", "voice": "anna"}, "stream": True}
    lines = server.chat("Hello there!", max_tokens=120, seed=1, temperature=1.0, **settings).text.split("\n\n")[:-2]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("audio", {}) for line in lines]
    sound = base64.b64decode("".join(delta.get("data", "") for delta in deltas))
    assert sound[:4] == b"RIFF" and sound.count(b"RIFF") == 1
    texts = [number for number, delta in enumerate(deltas) if delta.get("transcript")]
    sounds = [number for number, delta in enumerate(deltas) if delta.get("data")]
    assert sounds[0] < texts[-1] and len(sounds) > 1
