import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import soxr
from PIL import Image
from starlette.testclient import WebSocketDenialResponse

from tests.serve.realtime.conftest import Socket, Talk, Talking, kinds, pcm
from tests.serve.test_leaving import until

TEXT_TURN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
ENDS = ["response.output_audio.done", "response.output_audio_transcript.done", *TEXT_TURN[6:]]


def joined(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == kind)


def check_turn(events: list[dict[str, Any]], *, in_conversation: bool = True) -> dict[str, Any]:
    """Checks what holds for every response; returns it."""
    done: dict[str, Any] = events[-1]["response"]
    (item,) = done["output"]
    (part,) = item["content"]
    text = joined(events, "response.output_text.delta") + joined(events, "response.output_audio_transcript.delta")
    assert part.get("text", part.get("transcript")) == text
    for event in events:
        if event["type"].startswith("response.") and event["type"] not in ("response.created", "response.done"):
            assert (event["response_id"], event["output_index"]) == (done["id"], 0)
            assert event.get("item_id", item["id"]) == item["id"]
        if event["type"].endswith("text.done") or event["type"].endswith("transcript.done"):
            assert event.get("text", event.get("transcript")) == text
    assert "conversation.item.done" in kinds(events) or not in_conversation
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert len(json.dumps(events[-1])) < 20_000
    return done


def test_a_text_turn_has_its_events_in_order(talking: Talking) -> None:
    with talking.session() as session:
        said = session.say("Hello there!")
        events = session.respond(output_modalities=["text"], max_output_tokens=12)
        assert kinds(events) == TEXT_TURN
        done = check_turn(events)
        assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
        assert events[2]["previous_item_id"] == said
        assert done["usage"]["output_token_details"] == {"text_tokens": 12, "audio_tokens": 0}
    assert until(lambda: talking.free)


def test_later_turns_reuse_what_was_computed(talking: Talking) -> None:
    with talking.session() as session:
        session.send("session.update", session={"instructions": "Be brief.", "output_modalities": ["text"]})
        session.until("session.updated")
        session.say("Hello there! What is this?")
        first = check_turn(session.respond(max_output_tokens=8))
        session.say("What is this?")
        second = check_turn(session.respond(max_output_tokens=8))
        cached = second["usage"]["input_token_details"]["cached_tokens"]
        assert cached >= first["usage"]["input_tokens"] > 0


def test_a_spoken_turn_has_its_events_in_order_and_its_sound(talking: Talking) -> None:
    with talking.session() as session:
        session.say("Hello there!")
        events = session.respond(max_output_tokens=40)
        done = check_turn(events)
        assert kinds(events)[:4] == TEXT_TURN[:4]
        assert kinds(events)[-6:] == ENDS
        sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
        expected = talking.engine.model.say(done["output"][0]["content"][0]["transcript"], voice="anna", seed=3)
        wanted = soxr.resample(expected.audio.numpy(), expected.sample_rate, 24_000)
        given = np.frombuffer(sound, "<i2") / 32767
        assert abs(len(given) - len(wanted)) < 50
        assert np.abs(given[: len(wanted)] - wanted[: len(given)]).max() < 2e-3
        assert done["usage"]["output_token_details"]["audio_tokens"] > 10
    assert until(lambda: talking.free)


def test_a_reply_without_words_is_silent(talking: Talking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.infer.speech.streaming.SpokenText.push", lambda self, text: [])
    with talking.session() as session:
        session.say("Hello there!")
        events = session.respond(max_output_tokens=4)
        assert events[-1]["response"]["status"] == "incomplete"
        assert "response.output_audio.delta" not in kinds(events)
    assert until(lambda: talking.free)


def test_a_response_of_its_own_input_leaves_the_conversation_alone(talking: Talking) -> None:
    with talking.session() as session:
        said = session.say("Hello there!")
        content = [{"type": "input_text", "text": "What is this?"}]
        items = [{"type": "item_reference", "id": said}, {"type": "message", "role": "user", "content": content}]
        options = {"input": items, "conversation": "none", "metadata": {"k": "v"}, "output_modalities": ["text"]}
        events = session.respond(**options, max_output_tokens=4)
        done = check_turn(events, in_conversation=False)
        assert "conversation.item.added" not in kinds(events)
        assert (done["conversation_id"], done["metadata"]) == (None, {"k": "v"})
        session.send("conversation.item.retrieve", item_id=done["output"][0]["id"])
        assert session.error()["code"] == "item_not_found"


def test_items_are_created_shown_and_deleted(talking: Talking) -> None:
    with talking.session() as session:
        first = session.say("One.")
        item = {"id": "mine", "type": "message", "role": "system", "content": [{"type": "input_text", "text": "S"}]}
        session.send("conversation.item.create", item=item, previous_item_id="root")
        added, done = session.expect("conversation.item.added", "conversation.item.done")
        assert added["previous_item_id"] is None
        assert done["item"]["status"] == "completed"
        session.send("conversation.item.create", item={**item, "id": "next"}, previous_item_id="mine")
        assert session.expect("conversation.item.added", "conversation.item.done")[0]["previous_item_id"] == "mine"
        session.send("conversation.item.retrieve", item_id=first)
        assert session.expect("conversation.item.retrieved")[0]["item"]["content"][0]["text"] == "One."
        session.send("conversation.item.delete", item_id="mine")
        assert session.expect("conversation.item.deleted")[0]["item_id"] == "mine"


def test_what_was_heard_is_an_item_and_changes_the_reply(talking: Talking) -> None:
    rng = np.random.default_rng(0)
    replies = set()
    for seed in range(3):
        with talking.session() as session:
            session.push_to_talk()
            sound = rng.standard_normal(12_000) * 0.1 * (seed + 1)
            session.hear(sound, step=1777)
            session.send("input_audio_buffer.commit")
            committed, added, done = session.expect(
                "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"
            )
            assert committed["item_id"] == added["item"]["id"] == done["item"]["id"]
            assert done["item"]["content"] == [{"type": "input_audio", "transcript": None}]
            turn = check_turn(session.respond(output_modalities=["text"], max_output_tokens=12))
            assert turn["usage"]["input_token_details"]["audio_tokens"] > 0
            replies.add(turn["output"][0]["content"][0]["text"])
    assert len(replies) == 3


def test_what_was_heard_is_written_down(talking: Talking, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = np.random.default_rng(0).standard_normal(24_000) * 0.2
    place = "conversation.item.input_audio_transcription"
    with talking.session() as session:
        settings = {"turn_detection": None, "transcription": {"model": "nano", "language": "en", "prompt": "Cats."}}
        session.send("session.update", session={"audio": {"input": settings}})
        session.expect("session.updated")
        session.hear(sound)
        session.send("input_audio_buffer.commit")
        events = session.until(f"{place}.completed")
        done = events[-1]
        assert done["item_id"] == events[0]["item_id"]
        assert joined(events, f"{place}.delta") == done["transcript"] != ""
        assert done["usage"]["input_token_details"]["audio_tokens"] > 0
        session.send("conversation.item.retrieve", item_id=done["item_id"])
        (shown,) = session.expect("conversation.item.retrieved")
        assert shown["item"]["content"] == [{"type": "input_audio", "transcript": done["transcript"]}]
        monkeypatch.setattr(talking.engine, "media_tokens", None)
        session.hear(sound)
        session.send("input_audio_buffer.commit")
        assert session.until(f"{place}.failed")[-1]["error"]["type"] == "server_error"
        monkeypatch.undo()
        session.hear(sound)
        session.send("input_audio_buffer.commit")
        session.until("conversation.item.done")
    assert until(lambda: talking.free)


def test_a_picture_is_looked_at_when_it_comes(talking: Talking) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    good = base64.b64encode(buffer.getvalue()).decode()
    with talking.session() as session:
        for url in ("data:image/png;base64,AAAA", "data:,x", "data:", f"data:image/png;base64,{good[:40]}"):
            content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is this?"}]
            session.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
            assert session.error()["param"] == "item", url
        content[0]["image_url"] = f"data:image/png;base64,{good}"
        session.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        session.expect("conversation.item.added", "conversation.item.done")
        done = check_turn(session.respond(output_modalities=["text"], max_output_tokens=4))
        assert done["usage"]["input_token_details"]["image_tokens"] > 0
    assert until(lambda: talking.free)


def test_a_sound_that_is_too_short_is_no_item(talking: Talking) -> None:
    with talking.session() as session:
        session.push_to_talk()
        session.send("input_audio_buffer.append", audio=pcm(np.zeros(24 * 90)))
        session.send("input_audio_buffer.commit", event_id="short")
        error = session.error()
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "short")
        session.send("input_audio_buffer.clear")
        session.expect("input_audio_buffer.cleared")
        session.send("input_audio_buffer.append", audio=pcm(np.zeros(24 * 110)))
        session.send("input_audio_buffer.commit")
        session.expect("input_audio_buffer.committed", "conversation.item.added", "conversation.item.done")


def test_a_response_is_cancelled_with_one_done(talking: Talking) -> None:
    with talking.session() as session:
        session.say("Hello there!")
        for spoken in (False, True):
            session.send("response.create", response={"output_modalities": ["audio" if spoken else "text"]})
            session.send("response.create", event_id="second")
            session.send("response.cancel")
            events = session.until("response.done")
            errors = [event["error"] for event in events if event["type"] == "error"]
            codes = [(error["code"], error["event_id"]) for error in errors]
            assert codes == [("conversation_already_has_active_response", "second")]
            done = events[-1]["response"]
            assert done["status"] == "cancelled"
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            session.send("response.cancel")
            assert session.error()["code"] == "response_cancel_not_active"
    assert until(lambda: talking.free)


def test_a_cancelled_reply_says_what_was_sent(talking: Talking) -> None:
    with talking.session() as session:
        session.say("Hello there!")
        session.send("response.create", response={"output_modalities": ["text"]})
        events = session.until("response.output_text.delta")
        session.send("response.cancel", response_id=events[0]["response"]["id"])
        events += session.until("response.done")
        assert kinds(events)[-5:] == TEXT_TURN[-5:]
        assert check_turn(events)["output"][0]["status"] == "incomplete"
        assert kinds(events).count("response.done") == 1
    assert until(lambda: talking.free)


BROKEN: list[tuple[Any, str | None, str | None]] = [
    ("", "invalid_json", None),
    ("{", "invalid_json", None),
    ("[" * 100_000, "invalid_json", None),
    ("null", "invalid_event", None),
    ("[]", "invalid_event", None),
    ({}, "invalid_event", "type"),
    ({"type": 3}, "invalid_event", "type"),
    ({"type": "session.create"}, "invalid_event", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": []}, None, "session"),
    ({"type": "session.update", "session": {"voice": "anna"}}, "unknown_parameter", "voice"),
    ({"type": "input_audio_buffer.append", "audio": "???"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "conversation.item.create", "item": {"type": "function_call"}}, None, "item.type"),
    (
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}},
        None,
        "item.content",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "x"}]},
        },
        "invalid_value",
        "item.content[0].type",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_image", "image_url": "http://localhost/a.png"}],
            },
        },
        "invalid_image_url",
        "item.content[0].image_url",
    ),
    ({"type": "conversation.item.delete", "item_id": "none"}, "item_not_found", "item_id"),
    ({"type": "response.create", "response": {"max_output_tokens": -1}}, None, "response.max_output_tokens"),
    ({"type": "response.create", "response": {"output_modalities": ["video"]}}, None, "response.output_modalities.0"),
    ({"type": "response.create", "response": {"audio": {"output": {"voice": "x"}}}}, "invalid_value", None),
    ({"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "x"}]}}, None, "item_id"),
    ({"type": "response.cancel", "response_id": "none"}, "response_cancel_not_active", "response_id"),
    ({"type": "output_audio_buffer.clear"}, "unsupported_value", "type"),
]


def test_broken_events_are_told_and_the_session_goes_on(talking: Talking) -> None:
    with talking.session() as session:
        for event, code, param in BROKEN:
            named = {**event, "event_id": "e1"} if isinstance(event, dict) else event
            session.websocket.send_text(named if isinstance(named, str) else json.dumps(named))
            error = session.error()
            assert error["type"] == "invalid_request_error", event
            assert code is None or error["code"] == code, (event, error)
            assert param is None or error["param"] == param, (event, error)
            assert error["event_id"] == ("e1" if isinstance(event, dict) else None), event
        session.websocket.send_bytes(b"\x00")
        assert session.error()["code"] == "invalid_event"
        session.say("Hello there!")
        check_turn(session.respond(output_modalities=["text"], max_output_tokens=4))


def test_a_bug_is_told_without_its_words(talking: Talking, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug with a secret")

    with talking.session() as session:
        session.say("Hello there!")
        monkeypatch.setattr(talking.engine, "media_tokens", broken)
        done = session.respond(output_modalities=["text"])[-1]["response"]
        assert (done["status"], done["status_details"]["error"]["type"]) == ("failed", "server_error")
        assert "secret" not in json.dumps(done)
        monkeypatch.undo()
        monkeypatch.setattr("muomni.serve.realtime.connection.made", broken)
        session.send("conversation.item.delete", item_id="x")
        session.error()
        content = [{"type": "input_text", "text": "x"}]
        session.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert session.error()["type"] == "server_error"
    assert "a bug with a secret" in caplog.text
    assert until(lambda: talking.free)


def test_a_prompt_that_cannot_be_is_a_failed_response(talking: Talking) -> None:
    with talking.session() as session:
        done = session.respond(output_modalities=["text"])[-1]["response"]
        assert (done["status"], done["output"]) == ("failed", [])
        assert done["status_details"]["error"]["type"] == "invalid_request_error"


def test_the_oldest_items_are_left_out_where_the_context_ends(talking: Talking) -> None:
    with talking.session() as session:
        for _ in range(12):
            session.say("The cat sat on the mat. " * 40)
            session.say("The dog ate the bone.", "assistant")
        session.say("Hello there!")
        done = check_turn(session.respond(output_modalities=["text"], max_output_tokens=4))
        assert 0 < done["usage"]["input_tokens"] < talking.engine.context
        session.send("session.update", session={"truncation": "disabled"})
        session.expect("session.updated")
        session.say("What is this?")
        failed = session.respond(output_modalities=["text"])[-1]["response"]
        assert failed["status_details"]["error"]["code"] == "context_length_exceeded"


def test_clients_that_leave_at_each_moment_give_everything_back(talking: Talking) -> None:
    def leave_after(moment: str) -> None:
        with talking.session() as session:
            session.say("Hello there!")
            session.send("response.create", response={})
            if moment:
                session.until(moment)

    moments = ["", "response.created", "response.content_part.added", "response.output_audio_transcript.delta"]
    for moment in (*moments, "response.output_audio.delta", "response.output_audio.done", "response.done"):
        leave_after(moment)
        assert until(lambda: talking.free), moment


def test_sound_and_sessions_and_their_time_are_bounded(talk: Talk) -> None:
    with talk(max_sessions=1, max_sound_s=1.0, session_s=1.0) as talking:
        with talking.session() as session:
            with pytest.raises(WebSocketDenialResponse) as refused, talking.session():
                pass
            assert refused.value.status_code == 503
            assert int(refused.value.headers["retry-after"]) > 0
            session.push_to_talk()
            session.send("input_audio_buffer.append", audio=pcm(np.zeros(23_000)))
            session.send("input_audio_buffer.append", audio=pcm(np.zeros(2000)))
            assert session.error()["code"] == "input_audio_buffer_full"
            assert session.error()["code"] == "session_expired"
            assert session.websocket.receive()["code"] == 1000
        with talking.session():
            pass


def test_a_place_is_taken_only_while_a_response_is_made(talk: Talk) -> None:
    with talk(max_speaking=1) as talking, talking.session() as session:
        assert talking.engine.running == 0
        session.say("Hello there!")
        with talking.engine.speaking_place():
            done = session.respond()[-1]["response"]
            assert done["status_details"]["error"]["code"] == "server_overloaded"
        assert session.respond(max_output_tokens=20)[-1]["response"]["status"] == "incomplete"


def test_a_session_that_outlives_its_server_is_told(talk: Talk, caplog: Any) -> None:
    with talk() as talking, talking.session() as session:
        talking.engine.stop_admitting()
        talking.engine._pool.shutdown()
        session.send("input_audio_buffer.append", audio=pcm(np.zeros(100)))
        assert session.error()["code"] == "server_overloaded"
    assert not caplog.records


def test_events_stay_below_what_clients_take(talking: Talking) -> None:
    with talking.session() as session:
        session.send("session.update", session={"instructions": "\0" * 150_000})
        (told,) = session.expect("session.updated")
        assert len(json.dumps(told, ensure_ascii=False)) < 1 << 20


def denied(talking: Talking, path: str = "/v1/realtime", **options: Any) -> tuple[int, str]:
    try:
        with talking.client.websocket_connect(f"ws://localhost{path}", **options) as websocket:
            Socket(websocket).expect("session.created")
            return 101, str(websocket.accepted_subprotocol)
    except WebSocketDenialResponse as refused:
        return refused.status_code, refused.json()["error"]["code"]


def test_who_may_not_come_in_is_refused_before_the_upgrade(talk: Talk) -> None:
    with talk(keys=("k1",), origins=("http://page.example",)) as talking:
        key = {"authorization": "Bearer k1"}
        assert denied(talking, headers=key) == (101, "None")
        assert denied(talking) == (401, "invalid_api_key")
        assert denied(talking, "/v1/realtime?api_key=k1") == (401, "invalid_api_key")
        assert denied(talking, headers={"authorization": "Bearer k2"}) == (401, "invalid_api_key")
        assert denied(talking, subprotocols=["realtime", "openai-insecure-api-key.k1"]) == (101, "realtime")
        assert denied(talking, subprotocols=["openai-insecure-api-key.k1"]) == (101, "None")
        assert denied(talking, subprotocols=["realtime", "openai-insecure-api-key.k2"])[0] == 401
        assert denied(talking, headers={**key, "origin": "http://evil.example"}) == (403, "wrong_origin")
        assert denied(talking, headers={**key, "origin": "http://localhost.evil.example"}) == (403, "wrong_origin")
        assert denied(talking, headers={**key, "origin": "http://localhost"})[0] == 101
        assert denied(talking, headers={**key, "origin": "http://page.example"})[0] == 101
        assert denied(talking, headers={**key, "host": "evil.example"}) == (421, "wrong_host")
        assert denied(talking, "/v1/realtime?model=other", headers=key) == (404, "model_not_found")
        talking.engine.stop_admitting()
        assert denied(talking, headers=key) == (503, "server_overloaded")
