"""A live conversation on the page: with a server that is played here event by event, and with the real one."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import Running
from tests.serve.page.actions import replies, set_up, wait_until_heard, write
from tests.serve.test_leaving import until

if TYPE_CHECKING:
    from playwright.sync_api import Page, WebSocketRoute

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

PLAYED = "import('/app.js').then(({ player }) => player.played)"


class Script:
    """Plays the server of `/v1/realtime`.

    Attributes:
        received: events of the page, but for sound.
        sound: bytes that the page sent.
    """

    def __init__(self, page: "Page") -> None:
        self._page = page
        self._socket: WebSocketRoute | None = None
        self.received: list[dict[str, Any]] = []
        self.sound = b""
        page.route_web_socket(lambda url: "/v1/realtime" in url, self._open)

    def _open(self, socket: "WebSocketRoute") -> None:
        self._socket = socket
        socket.on_message(self._take)
        self.tell("session.created", session={})

    def _take(self, text: str | bytes) -> None:
        event = json.loads(text)
        if event["type"] == "input_audio_buffer.append":
            self.sound += base64.b64decode(event["audio"])
        else:
            self.received.append(event)

    def tell(self, kind: str, **fields: Any) -> None:
        """Sends an event."""
        assert self._socket is not None
        self._socket.send(json.dumps({"type": kind, "event_id": "event", **fields}))

    def wait(self, ready: Callable[[], object]) -> None:
        """Until the page has sent what is waited for."""
        for _ in range(300):
            if ready():
                return
            self._page.wait_for_timeout(20)
        raise AssertionError([event["type"] for event in self.received])

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The first event of a kind."""
        self.wait(lambda: any(event["type"] == kind for event in self.received))
        return next(event for event in self.received if event["type"] == kind)

    def answer(self, item: str, text: str, seconds: float) -> None:
        """A response but for its end."""
        self.tell("response.created", response={"id": "response"})
        self.tell("response.output_item.added", item={"id": item})
        place = {"item_id": item, "output_index": 0, "content_index": 0}
        self.tell("response.output_audio_transcript.delta", **place, delta=text)
        loud = base64.b64encode(np.full(2400, 3000, "<i2").tobytes()).decode()
        for _ in range(round(seconds * 10)):
            self.tell("response.output_audio.delta", **place, delta=loud)

    def done(self, item: str, status: str = "completed", **details: Any) -> None:
        """The end of a response."""
        usage = {"output_token_details": {"text_tokens": 5}}
        output = [{"id": item}] if item else []
        fields = {"status": status, "status_details": details, "output": output, "usage": usage}
        self.tell("response.done", response=fields)


@pytest.fixture
def script(page: "Page") -> Script:
    return Script(page)


def begin(page: "Page", script: Script) -> None:
    """Opens a live conversation, and asks something."""
    page.get_by_role("button", name="Talk hands-free").click()
    expect(page.locator("#live-state")).to_have_text("Listening")
    script.wait(lambda: len(script.sound) > 24_000)  # half a second
    script.tell("input_audio_buffer.speech_started", audio_start_ms=100, item_id="said")
    expect(page.locator("#live-state")).to_have_text("Hearing you")
    script.tell("input_audio_buffer.speech_stopped", audio_end_ms=400, item_id="said")
    expect(page.locator("#live-state")).to_have_text("Thinking")


def test_talking_interrupts_at_what_was_heard(page: "Page", script: Script) -> None:
    set_up(page, aloud=True)
    begin(page, script)
    session = script.wait_for("session.update")["session"]
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["audio"]["output"]["voice"] == "anna"
    assert session["max_output_tokens"] == 20
    page.wait_for_function("() => Math.abs(document.querySelector('.user audio')?.duration - 0.3) < 0.01")
    assert np.abs(np.frombuffer(script.sound, "<i2")).max() > 1000  # the microphone's file was heard
    script.answer("first", "one two three four", 20)
    expect(page.locator("#live-state")).to_contain_text("Speaking")
    wait_until_heard(page, 0.3)
    script.tell("input_audio_buffer.speech_started", audio_start_ms=3000, item_id="again")
    script.done("first", "cancelled", type="cancelled", reason="turn_detected")
    truncated = script.wait_for("conversation.item.truncate")
    assert (truncated["item_id"], truncated["content_index"]) == ("first", 0)
    assert 300 <= truncated["audio_end_ms"] < 15_000
    assert truncated["audio_end_ms"] == int(page.evaluate(PLAYED) * 1000)
    late = base64.b64encode(bytes(48_000)).decode()
    script.tell("response.output_audio.delta", item_id="first", delta=late)  # is dropped
    expect(page.locator("#live-state")).to_have_text("Hearing you")
    script.tell("conversation.item.truncated", item_id="first", content_index=0, audio_end_ms=500)
    assert script.wait_for("conversation.item.retrieve")["item_id"] == "first"
    heard = {"id": "first", "content": [{"type": "output_audio", "transcript": "one two"}]}
    script.tell("conversation.item.retrieved", item=heard)
    expect(page.locator(".unheard")).to_have_text(" three four")
    script.tell("input_audio_buffer.speech_stopped", audio_end_ms=3500, item_id="again")
    script.answer("second", "five", 0.2)
    script.done("second", type="completed")
    expect(page.locator("#live-state")).to_have_text("Listening")
    assert replies(page, 2) == ["one two three four", "five"]
    assert page.locator(".assistant .figures").all_text_contents()[0].endswith("stopped")
    page.get_by_role("button", name="End").click()
    expect(page.get_by_role("button", name="Talk hands-free")).to_be_focused()


def test_the_button_interrupts_and_the_switch_mutes(page: "Page", script: Script) -> None:
    begin(page, script)
    script.answer("first", "one two", 20)
    wait_until_heard(page, 0)
    page.keyboard.press("Escape")
    script.wait_for("conversation.item.truncate")
    script.wait_for("response.cancel")
    script.done("first", "cancelled", type="cancelled", reason="client_cancelled")
    expect(page.locator("#live-state")).to_have_text("Listening")
    page.get_by_role("button", name="Mute").click()
    page.wait_for_timeout(100)
    script.sound = b""
    script.wait(lambda: len(script.sound) > 12_000)
    assert not any(script.sound)
    page.get_by_role("button", name="Mute").click()
    script.tell("error", error={"message": "that went wrong"})
    script.wait(lambda: any(script.sound))
    expect(page.locator("#status.error")).to_have_text("that went wrong")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Voice").select_option("ben")
    page.get_by_role("button", name="Done").click()

    def voices() -> list[str]:
        updates = (event["session"] for event in script.received if event["type"] == "session.update")
        return [session["audio"]["output"]["voice"] for session in updates]

    script.wait(lambda: voices() == ["anna", "ben"])


def test_what_was_written_before_is_known(page: "Page", script: Script) -> None:
    set_up(page)
    write(page, "Hello there!")
    [reply] = replies(page, 1)
    begin(page, script)
    items = [event["item"] for event in script.received if event["type"] == "conversation.item.create"]
    assert [(item["role"], item["content"]) for item in items] == [
        ("user", [{"type": "input_text", "text": "Hello there!"}]),
        ("assistant", [{"type": "output_text", "text": reply}]),
    ]
    script.tell("response.created", response={"id": "response"})
    script.done("", "failed", type="failed", error={"message": "the server is full"})
    expect(page.locator(".assistant .error").last).to_have_text("the server is full")
    page.get_by_role("button", name="End").click()
    write(page, "What is this?")
    replies(page, 3)


def test_a_picture_is_shown_while_talking(page: "Page", script: Script, tmp_path: Path) -> None:
    page.get_by_role("button", name="Talk hands-free").click()
    expect(page.locator("#live-state")).to_have_text("Listening")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Show a picture").click()
    chooser.value.set_files(tmp_path / "red.png")
    [part] = script.wait_for("conversation.item.create")["item"]["content"]
    assert part["type"] == "input_image"
    assert part["image_url"].startswith("data:image/png;base64,")
    script.wait(lambda: len(script.sound) > 24_000)
    script.tell("input_audio_buffer.speech_started", audio_start_ms=100, item_id="said")
    script.tell("input_audio_buffer.speech_stopped", audio_end_ms=400, item_id="said")
    script.answer("first", "red", 0.1)
    script.done("first")
    transcribed = "conversation.item.input_audio_transcription.completed"
    script.tell(transcribed, item_id="said", content_index=0, transcript="what colour is it")
    expect(page.locator(".user figcaption")).to_have_text("“what colour is it”")
    assert replies(page, 1) == ["red"]
    assert page.locator(".user img, .user audio").count() == 2


def test_a_real_conversation(page: "Page", server: Running) -> None:
    set_up(page, aloud=True, Longest_reply="60")
    page.get_by_role("button", name="Talk hands-free").click()
    expect(page.locator("#live-state")).to_have_text("Speaking")  # the question was heard
    wait_until_heard(page, 0)
    # The microphone's file begins again, which interrupts the reply.
    expect(page.locator(".assistant .figures:not(:empty)").first).to_contain_text("first sound")
    expect(page.locator(".unheard").first).not_to_be_empty()
    expect(page.locator(".user audio")).to_have_count(2)
    assert 0.5 < page.evaluate("document.querySelector('.user audio').duration") < 2.5
    page.get_by_role("button", name="End").click()
    expect(page.get_by_role("button", name="Talk hands-free")).to_be_focused()
    assert until(lambda: server.engine.speaking == server.engine.running == 0)


def test_a_server_that_refuses_is_told(page: "Page", server: Running, errors: list[str]) -> None:
    page.route_web_socket(lambda url: "/v1/realtime" in url, lambda socket: socket.close(code=1008))
    page.get_by_role("button", name="Talk hands-free").click()
    expect(page.locator("#status")).to_contain_text("takes no live conversation")
    expect(page.get_by_label("Message", exact=True)).to_be_visible()


def test_only_what_is_loud_passes_while_the_model_speaks(page: "Page") -> None:
    calls = """import("/live/gate.js").then(({ Gate }) => {
      const gate = new Gate();
      const yes = { speaking: true, interruptible: true }, silent = { speaking: false, interruptible: true };
      const never = { speaking: true, interruptible: false };
      const seen = [gate.passes(0.01, silent, 0), gate.passes(0.01, yes, 10), gate.passes(0.2, yes, 20),
        gate.passes(0.01, yes, 30), gate.passes(0.01, yes, 2000), gate.passes(0.01, silent, 2100),
        gate.passes(0.01, silent, 3000), gate.passes(0.2, never, 4000)];
      gate.muted = true;
      return [...seen, gate.passes(0.2, silent, 9000)];
    })"""
    assert page.evaluate(calls) == [True, False, True, True, False, False, True, False, False]
