import base64
from typing import Any

import pytest

from muomni.infer.speech import SaidWords
from muomni.serve.errors import ApiError
from muomni.serve.realtime.conversation import Conversation, Item, Part, messages
from tests.serve.realtime.conftest import Socket, Talking


def truncate(session: Socket, item: str, milliseconds: int, content_index: int = 0) -> None:
    place = {"content_index": content_index, "audio_end_ms": milliseconds}
    session.send("conversation.item.truncate", item_id=item, **place)


def spoken(session: Socket) -> tuple[str, str, int]:
    """A spoken reply: its item, its text, and its milliseconds of sound."""
    session.say("Hello there!")
    events = session.respond(max_output_tokens=40)
    (item,) = events[-1]["response"]["output"]
    sounds = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    size = sum(len(base64.b64decode(sound)) for sound in sounds)
    return item["id"], item["content"][0]["transcript"], size // 48


def transcript(session: Socket, item: str) -> str:
    session.send("conversation.item.retrieve", item_id=item)
    (event,) = session.expect("conversation.item.retrieved")
    return str(event["item"]["content"][0]["transcript"])


def test_the_history_holds_what_was_heard(talking: Talking) -> None:
    with talking.session() as session:
        item, text, length = spoken(session)
        before = len(text)
        assert length > 800
        for milliseconds in (length, length * 2 // 3, length // 3):
            truncate(session, item, milliseconds)
            (event,) = session.expect("conversation.item.truncated")
            assert (event["item_id"], event["content_index"], event["audio_end_ms"]) == (item, 0, milliseconds)
            heard = transcript(session, item)
            assert text.startswith(heard) and len(heard) <= before
            assert len(heard) == len(text) or not heard or text[len(heard)].isspace()
            before = len(heard)
        assert 0 < before < len(text)
        prompts: list[Any] = []
        prepare = talking.engine.prepare

        async def noted(prompt: Any, *args: Any, **options: Any) -> Any:
            prompts.append(prompt)
            return await prepare(prompt, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(talking.engine, "prepare", noted)
            session.say("What is this?")
            session.respond(max_output_tokens=2, output_modalities=["text"])
        assert prompts[0][1] == {"role": "assistant", "content": text[:before]}
        truncate(session, item, 0)
        session.expect("conversation.item.truncated")
        assert transcript(session, item) == ""


def test_what_cannot_be_truncated_is_told(talking: Talking) -> None:
    with talking.session() as session:
        item, text, length = spoken(session)
        for milliseconds, index, param in ((length + 50, 0, "audio_end_ms"), (100, 1, "content_index")):
            truncate(session, item, milliseconds, index)
            assert session.error()["param"] == param
        assert transcript(session, item) == text
        truncate(session, session.say("Mine."), 0)
        assert session.error()["param"] == "item_id"
        truncate(session, session.say("Yours.", "assistant"), 0)
        assert session.error()["param"] == "item_id"


def test_an_item_that_is_being_made_stays(talking: Talking) -> None:
    conversation = Conversation(1000)
    item = Item("assistant", [Part("output_audio", "Hello", said=SaidWords(), sent_s=1.0)], "in_progress")
    conversation.add(item)
    for change in (lambda: conversation.truncate(item.id, 0, 0), lambda: conversation.delete(item.id)):
        with pytest.raises(ApiError, match="being made"):
            change()
    with pytest.raises(ApiError, match="full"):
        conversation.add(Item("user", [Part("input_text", "x" * 1001)]))
    with pytest.raises(ApiError, match="already"):
        conversation.add(Item("user", [Part("input_text", "x")], id=item.id))
    assert conversation.items == [item]


def test_a_prompt_holds_what_the_items_say() -> None:
    said = SaidWords()
    said.add(0.0, 0.1, [3])
    items = [
        Item("assistant", [Part("output_text", "Hello!")]),
        Item("user", [Part("input_text", "One.")]),
        Item("system", [Part("input_text", "Be brief.")]),
        Item("assistant", [Part("output_audio", "", said=said)]),
        Item("user", [Part("input_text", "Two."), Part("input_image", image="data:image/png;base64,AA==")]),
    ]
    system, blank, hello, last = messages(items, "Be nice.")
    assert system == {"role": "system", "content": "Be nice.\nBe brief."}
    assert (blank["role"], blank["content"], hello["content"]) == ("user", "", "Hello!")
    assert [part["type"] for part in last["content"]] == ["text", "text", "image_url"]
