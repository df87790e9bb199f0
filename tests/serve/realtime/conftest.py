"""Sessions with a nano model that sees, hears and speaks, in process: no socket, no server."""

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient, WebSocketTestSession

from muomni import MuOmni
from muomni.infer.sampling import SamplingParams
from muomni.serve.app import make_app
from muomni.serve.engine import ServingEngine
from muomni.serve.settings import ServerSettings
from tests.infer.speech.models import make_speaking

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer


@dataclass
class Socket:
    """A session as a client sees it."""

    websocket: WebSocketTestSession

    def send(self, kind: str, **fields: Any) -> None:
        self.websocket.send_json({"type": kind, **fields})

    def next(self) -> dict[str, Any]:
        event = self.websocket.receive_json()
        assert isinstance(event["event_id"], str)
        return dict(event)

    def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the first of that type."""
        events = [self.next()]
        while events[-1]["type"] != kind:
            events.append(self.next())
        return events

    def expect(self, *kinds: str) -> list[dict[str, Any]]:
        events = [self.next() for _ in kinds]
        assert [event["type"] for event in events] == list(kinds), events
        return events

    def error(self) -> dict[str, Any]:
        (event,) = self.expect("error")
        assert set(event["error"]) == {"type", "code", "message", "param", "event_id"}
        return dict(event["error"])

    def say(self, text: str, role: str = "user") -> str:
        """Adds a message; its id."""
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": role, "content": content})
        added, _ = self.expect("conversation.item.added", "conversation.item.done")
        return str(added["item"]["id"])

    def push_to_talk(self) -> None:
        self.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        self.expect("session.updated")

    def hear(self, samples: Any, step: int = 2400) -> None:
        """Sends sound at 24 kHz."""
        for start in range(0, len(samples), step):
            self.send("input_audio_buffer.append", audio=pcm(samples[start : start + step]))

    def respond(self, **options: Any) -> list[dict[str, Any]]:
        """Asks for a response; all of its events."""
        self.send("response.create", response=options)
        return self.until("response.done")


def pcm(samples: Any) -> str:
    """Base64 of float samples at 24 kHz."""
    return base64.b64encode((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).decode()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types, repeated deltas once."""
    names = [event["type"] for event in events]
    return [name for n, name in enumerate(names) if not (name.endswith(".delta") and n and names[n - 1] == name)]


@dataclass
class Talking:
    """An application, and what computes for it."""

    client: TestClient
    engine: ServingEngine

    @contextmanager
    def session(self, **options: Any) -> Iterator[Socket]:
        with self.client.websocket_connect("ws://localhost/v1/realtime?model=nano", **options) as websocket:
            socket = Socket(websocket)
            socket.expect("session.created")
            yield socket

    @property
    def free(self) -> bool:
        """Whether everything has been given back."""
        speaker = self.engine.model.runtime.speakers._shared
        listeners = 0 if speaker is None else speaker.listeners
        return self.engine.running == self.engine.speaking == listeners == 0 and not self.engine.engine.active


Talk = Callable[..., AbstractContextManager[Talking]]


@contextmanager
def talking_to(model: MuOmni, **settings: Any) -> Iterator[Talking]:
    chosen = ServerSettings(**{"model_name": "nano", "slots": 4, "drain_s": 1.0, **settings})
    engine = ServingEngine(model, chosen)
    prepare, speech = engine.prepare, engine.speech

    async def seeded(prompt: Any, params: SamplingParams, **options: Any) -> Any:
        return await prepare(prompt, replace(params, temperature=1.0, seed=8), **options)

    # Replies with words in them, the same each time; and turns by the loudness alone.
    engine.prepare = seeded
    engine.speech = lambda voice, seed: speech(voice, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("muomni.serve.realtime.endpoint.load_silero", lambda: None)
        app = make_app(engine, chosen)
    with TestClient(app, "http://localhost") as client:
        yield Talking(client, engine)


@pytest.fixture(scope="session")
def voice_model(small_tokenizer: "Tokenizer") -> MuOmni:
    """Sees, hears and speaks."""
    return make_speaking(small_tokenizer, senses=True)


@pytest.fixture(scope="session")
def talking(voice_model: MuOmni) -> Iterator[Talking]:
    """What most tests share."""
    with talking_to(voice_model) as talking:
        yield talking


@pytest.fixture
def talk(voice_model: MuOmni) -> Talk:
    """An application with settings of its own: `with talk(max_sessions=1) as talking`."""
    return lambda **settings: talking_to(voice_model, **settings)
