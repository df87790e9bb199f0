import time
from typing import Any

import numpy as np
import pytest

from tests.serve.realtime.conftest import Socket, Talk, Talking, kinds, pcm
from tests.serve.realtime.test_connection import check_turn
from tests.serve.test_leaving import until

QUIET = np.zeros(24_000)
LOUD = np.sin(np.arange(24_000) * 0.1) * 0.4
COMMITTED = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]


def detect(session: Socket, output: str = "text", **settings: Any) -> None:
    detection = {"turn_detection": {"type": "server_vad", "silence_duration_ms": 300, **settings}}
    changes = {"audio": {"input": detection}, "output_modalities": [output], "max_output_tokens": 12}
    session.send("session.update", session=changes)
    session.expect("session.updated")


def test_a_turn_is_heard_and_answered(talking: Talking) -> None:
    with talking.session() as session:
        detect(session)
        session.hear(QUIET)
        session.hear(LOUD)
        session.hear(QUIET)
        started, stopped, *rest = session.until("response.done")
        assert (started["type"], stopped["type"]) == (
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
        )
        assert abs(started["audio_start_ms"] - 700) < 100
        assert abs(stopped["audio_end_ms"] - 2300) < 100
        assert kinds(rest)[:4] == [*COMMITTED, "response.created"]
        assert started["item_id"] == stopped["item_id"] == rest[0]["item_id"] == rest[1]["item"]["id"]
        turn = check_turn(rest)
        assert turn["usage"]["input_token_details"]["audio_tokens"] > 10
        session.hear(LOUD)
        session.hear(QUIET)
        second = session.until("response.done")
        assert abs(second[0]["audio_start_ms"] - 2700) < 100
        assert second[2]["previous_item_id"] == turn["output"][0]["id"]
        assert second[-1]["response"]["usage"]["input_token_details"]["cached_tokens"] > 10
    assert until(lambda: talking.free)


def test_a_changed_threshold_leaves_the_detection_on(talking: Talking) -> None:
    with talking.session() as session:
        detect(session, create_response=False)
        session.hear(QUIET)
        session.send("session.update", session={"audio": {"input": {"turn_detection": {"threshold": 0.6}}}})
        (told,) = session.expect("session.updated")
        assert told["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300
        session.hear(LOUD)
        session.hear(QUIET)
        session.expect("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", *COMMITTED)
        session.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}})
        assert "server_vad" in session.error()["message"]
        session.push_to_talk()
        session.hear(LOUD)
        session.send("input_audio_buffer.commit")
        session.expect(*COMMITTED)


def test_speech_ends_a_response(talking: Talking) -> None:
    with talking.session() as session:
        detect(session, "audio")
        session.send("session.update", session={"max_output_tokens": "inf"})
        session.expect("session.updated")
        session.hear(QUIET)
        session.say("Hello there!")
        session.send("response.create")
        events = session.until("response.output_audio_transcript.delta")
        session.hear(LOUD)
        events += session.until("response.done")
        names = kinds(events)
        assert "input_audio_buffer.speech_started" in names
        done = check_turn([event for event in events if not event["type"].startswith("input_audio")])
        assert done["status"] == "cancelled"
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert until(lambda: talking.free)
        session.hear(QUIET)
        assert session.until("response.created")[0]["type"] == "input_audio_buffer.speech_stopped"
        session.send("response.cancel")
        session.until("response.done")
    assert until(lambda: talking.free)


def test_a_response_may_be_left_to_its_end(talking: Talking) -> None:
    with talking.session() as session:
        detect(session, interrupt_response=False, create_response=False)
        session.hear(QUIET)
        session.say("Hello there!")
        session.send("response.create", response={"max_output_tokens": 40})
        session.until("response.created")
        session.hear(LOUD)
        session.hear(QUIET)
        events = session.until("input_audio_buffer.committed")
        if "response.done" not in kinds(events):
            events += session.until("response.done")
        assert [e["response"]["status"] for e in events if e["type"] == "response.done"] == ["incomplete"]


def test_silence_for_too_long_is_answered_once(talking: Talking) -> None:
    with talking.session() as session:
        detect(session, idle_timeout_ms=100)
        session.hear(QUIET)
        session.hear(LOUD)
        session.hear(QUIET[:12_000])
        session.until("response.done")
        time.sleep(0.15)
        session.hear(QUIET, step=24_000)
        (triggered, *rest) = session.until("response.done")
        assert triggered["type"] == "input_audio_buffer.timeout_triggered"
        assert triggered["audio_end_ms"] - triggered["audio_start_ms"] >= 100
        assert kinds(rest)[:4] == [*COMMITTED, "response.created"]
        assert rest[0]["item_id"] == triggered["item_id"]
    assert until(lambda: talking.free)


def test_a_turn_that_does_not_end_is_cut(talk: Talk) -> None:
    with talk(max_sound_s=1.5) as talking, talking.session() as session:
        detect(session, create_response=False)
        for _ in range(2):
            session.hear(QUIET)
        for _ in range(3):
            session.hear(LOUD)
        events = session.until("input_audio_buffer.committed")
        assert abs(events[1]["audio_end_ms"] - events[0]["audio_start_ms"] - 1500) < 100


@pytest.mark.parametrize("moment", ["input_audio_buffer.speech_started", "input_audio_buffer.committed"])
def test_clients_that_leave_while_they_speak_give_everything_back(talking: Talking, moment: str) -> None:
    with talking.session() as session:
        detect(session, "audio")
        session.hear(np.concatenate((QUIET, LOUD, QUIET)))
        session.until(moment)
    assert until(lambda: talking.free)


def test_sound_that_was_cleared_is_no_turn(talking: Talking) -> None:
    with talking.session() as session:
        detect(session, create_response=False)
        session.hear(QUIET)
        session.hear(LOUD)
        session.until("input_audio_buffer.speech_started")
        session.send("input_audio_buffer.clear")
        session.expect("input_audio_buffer.cleared")
        session.hear(QUIET)
        session.send("input_audio_buffer.append", audio=pcm(LOUD[:2400]))
        session.say("Nothing was committed.")
