"""Events of somebody who wants to break a session: each gets an answer, and the session stays."""

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muomni.serve.realtime.events import _KINDS
from tests.serve.realtime.conftest import Socket, Talking
from tests.serve.test_hostile import KEYS, VALUES
from tests.serve.test_leaving import until

EXAMPLES = int(os.environ.get("MUOMNI_FUZZ_EXAMPLES", "40"))
NAMES = st.sampled_from([
    "session", "item", "response", "audio", "type", "role", "content", "text", "transcript", "image_url", "item_id",
    "content_index", "audio_end_ms", "previous_item_id", "event_id", "input", "output", "turn_detection", "threshold",
    "modalities", "output_modalities", "instructions", "max_output_tokens", "tools", "format", "rate", "voice", "speed",
    "metadata", "conversation", "transcription", "model", "idle_timeout_ms", "create_response", "truncation",
])  # fmt: skip
FORMS = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | KEYS, inner, max_size=5), max_leaves=10
)
ITEMS = st.fixed_dictionaries(
    {
        "type": st.just("message") | FORMS,
        "role": st.sampled_from(["user", "assistant", "system", "x"]),
        "content": st.lists(
            st.dictionaries(NAMES, FORMS, max_size=3).flatmap(
                lambda part: st.sampled_from(
                    ["input_text", "output_text", "input_audio", "input_image", "output_audio", "text"]
                ).map(lambda kind: {**part, "type": kind})
            ),
            max_size=3,
        )
        | FORMS,
    }
)

SURROGATE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "\ud800"}]}


def stays(session: Socket) -> None:
    """All that was sent is answered: the answer to a mark comes, and no error of the server's own before it."""
    session.send("no.such.event", event_id="mark")
    while True:
        event = session.next()
        if event["type"] == "error":
            assert event["error"]["type"] != "server_error", event
            if event["error"]["event_id"] == "mark":
                return
        elif event["type"] == "response.done":
            assert '"server_error"' not in json.dumps(event["response"]["status_details"]), event


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(_KINDS)), st.dictionaries(NAMES, FORMS, max_size=4), st.none() | ITEMS),
        min_size=1,
        max_size=4,
    )
)
def test_any_event_is_answered(talking: Talking, events: list[tuple[str, dict[str, Any], Any]]) -> None:
    with talking.session() as session:
        for kind, fields, item in events:
            body = {**fields, **({} if item is None else {"item": item}), "type": kind}
            session.websocket.send_text(json.dumps(body))
        stays(session)
    assert until(lambda: talking.free)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"type": ' + "[" * 100_000,
        '{"type": null}',
        '{"type": "session.update"}',
        '{"type": "session.update", "session": null}',
        json.dumps({"type": "conversation.item.create", "item": SURROGATE}),
        '{"type": "response.create", "response": {"instructions": "\\udfff"}}',
        '{"type": "response.create", "response": {"max_output_tokens": NaN}}',
        '{"type": "response.create", "response": {"max_output_tokens": 1e999}}',
        '{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1'
        + "0" * 400
        + "}",
        '{"type": "input_audio_buffer.append", "audio": "!"}',
        '{"type": "input_audio_buffer.append", "audio": "A"}',
        '{"type": "x", "event_id": "' + "x" * 100_000 + '"}',
        '{"type": "session.update", "session": {"type": "realtime", "instructions": "' + "x" * 100_000 + '"}}',
    ],
)
@pytest.mark.timeout(20)
def test_hostile_texts_are_told(talking: Talking, text: str) -> None:
    with talking.session() as session:
        session.websocket.send_text(text)
        stays(session)
        session.websocket.send_bytes(b"\x00\xff")
        stays(session)
