from typing import Any

import pytest
from pydantic import ValidationError

from muomni.serve.errors import ApiError
from muomni.serve.realtime.events import error_fields
from muomni.serve.realtime.session import Session, updated

SESSION = Session(id="sess_1", model="nano", output_modalities=["audio"])


def update(session: Session = SESSION, *, hears: bool = True, **changes: Any) -> Session:
    return updated(session, changes, ("anna", "ben"), hears=hears)


def test_a_partial_update_leaves_the_rest_as_it_is() -> None:
    first = update(
        instructions="Be brief.",
        audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 700}}},
    )
    second = update(first, audio={"input": {"turn_detection": {"threshold": 0.8}}, "output": {"voice": "ben"}})
    detection = second.audio.input.turn_detection
    assert detection is not None
    assert (detection.threshold, detection.silence_duration_ms, detection.prefix_padding_ms) == (0.8, 700, 300)
    assert (second.instructions, second.audio.output.voice_name) == ("Be brief.", "ben")
    assert update(second, audio={"input": {"turn_detection": None}}).audio.input.turn_detection is None
    assert update(second, audio={"output": {"voice": {"id": "anna"}}}).audio.output.voice_name == "anna"


def test_what_the_server_says_comes_back_without_an_effect() -> None:
    again = update(**{**SESSION.model_dump(), "id": "mine", "expires_at": 5})
    assert again == SESSION


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}, "audio.input.turn_detection.type"),
        ({"audio": {"input": {"turn_detection": {"threshold": 0.5}}}}, "audio.input.turn_detection.type"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "audio.input.format.type"),
        ({"audio": {"input": {"format": {"rate": 16000}}}}, "audio.input.format.rate"),
        ({"audio": {"input": {"transcription": {"model": "whisper-1"}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "audio.input.noise_reduction"),
        ({"audio": {"output": {"speed": 1.5}}}, "audio.output.speed"),
        ({"audio": {"output": {"voice": "marin"}}}, "session.audio.output.voice"),
        ({"audio": 3}, "audio"),
        ({"modalities": ["text"]}, "modalities"),
        ({"output_modalities": ["text", "audio"]}, "output_modalities"),
        ({"output_modalities": []}, "output_modalities"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"type": "transcription"}, "type"),
        ({"model": "other"}, "session.model"),
        ({"instructions": "x" * 300_000}, "instructions"),
    ],
)
def test_what_is_wrong_or_cannot_be_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises((ApiError, ValidationError)) as raised:
        update(**changes)
    told = error_fields(raised.value, None)
    assert told["param"] == param
    assert told["type"] == "invalid_request_error"


def test_a_model_without_ears_or_voice_says_so() -> None:
    with pytest.raises(ApiError, match="does not hear"):
        update(hears=False, audio={"input": {"turn_detection": {"type": "server_vad"}}})
    with pytest.raises(ApiError, match="does not hear"):
        update(hears=False, audio={"input": {"transcription": {}}})
    with pytest.raises(ApiError, match="does not speak"):
        updated(SESSION, {}, (), hears=True)
