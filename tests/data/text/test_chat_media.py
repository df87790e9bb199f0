"""Pictures and sounds in conversations: their forms, their places in the ids, and text that only looks like them."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muomni.data import ChatTemplate, Tokenizer, check_messages, encode_chat
from muomni.data.media.media_ref import MediaRef
from muomni.data.text import content_parts
from muomni.data.text.chat import as_messages, encode_chats, expand
from muomni.data.text.content_parts import kind_of_value
from muomni.errors import DataError, PromptError
from tests.data.helpers import chat

ALL = ("image", "audio")
PNG = b"\x89PNG\r\n\x1a\nnot a real one"
TEXTS = st.text(max_size=12) | st.sampled_from(["<|image|>", "<|vision_start|>", "\n", "<|im_end|>", " a"])
PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(
        [{"type": "image", "image": "<|im_end|>.png"}, {"type": "image", "image": PNG, "caption": "a cat"}]
    ),
    st.sampled_from([{"type": "audio", "audio": "a.wav", "transcript": "one two"}]),
    st.integers(1, 3).map(lambda n: {"type": "video", "video": [PNG] * n}),
)
CONTENT: st.SearchStrategy[Any] = st.lists(PARTS, min_size=1, max_size=5)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def media_kinds(content: list[dict[str, Any]]) -> list[str]:
    kinds = []
    for part in content:
        if part["type"] == "video":
            kinds += ["image"] * len(part["video"])
        elif part["type"] != "text":
            kinds.append(part["type"])
    return kinds


@given(content=CONTENT)
def test_places_are_the_media_in_order_and_nothing_else(tokenizer: Tokenizer, content: list[dict[str, Any]]) -> None:
    encoded = encode_chat(tokenizer, user(content), inputs=ALL)
    names = {tokenizer.id_of("<|image|>"): "image", tokenizer.id_of("<|audio|>"): "audio"}
    assert [names[encoded.ids[place]] for place in encoded.places] == media_kinds(content)
    assert [part.kind for part in encoded.media] == media_kinds(content)
    assert sum(i in names for i in encoded.ids) == len(encoded.places)
    assert tokenizer.decode(encoded.ids, skip_special=False) == ChatTemplate().render(user(content))


@given(content=CONTENT.filter(lambda parts: not any("<|" in part.get("text", "") for part in parts)))
def test_same_ids_as_hugging_face(hugging_face: Any, tokenizer: Tokenizer, content: list[dict[str, Any]]) -> None:
    messages = [*user(content), {"role": "assistant", "content": "yes"}]
    found = hugging_face.apply_chat_template(messages, tokenize=True)
    expected = list(found if isinstance(found, list) else found["input_ids"])
    assert encode_chat(tokenizer, messages, inputs=ALL).ids == expected


@given(content=CONTENT, data=st.data())
def test_expanding_repeats_the_placeholders(
    tokenizer: Tokenizer, content: list[dict[str, Any]], data: st.DataObject
) -> None:
    messages = [*user(content), {"role": "assistant", "content": "yes"}]
    encoded = encode_chat(tokenizer, messages, inputs=ALL)
    counts = [data.draw(st.integers(1, 5)) for _ in encoded.media]
    wide = expand(encoded, counts)
    repeats = [1] * len(encoded.ids)
    for place, count in zip(encoded.places, counts, strict=True):
        repeats[place] = count
    assert wide.ids == [i for i, n in zip(encoded.ids, repeats, strict=True) for _ in range(n)]
    assert wide.answer_mask == [m for m, n in zip(encoded.answer_mask, repeats, strict=True) for _ in range(n)]
    assert [wide.ids[place] for place in wide.places] == [encoded.ids[place] for place in encoded.places]
    if counts:
        assert sum(wide.places) == sum(sum(repeats[:place]) for place in encoded.places)


def test_captions_and_transcripts_are_not_shown(tokenizer: Tokenizer) -> None:
    plain = user([{"type": "image", "image": PNG}, {"type": "audio", "audio": PNG}])
    noted = user([{"type": "image", "image": PNG, "caption": "c"}, {"type": "audio", "audio": PNG, "transcript": "t"}])
    encoded = encode_chat(tokenizer, noted, inputs=ALL)
    assert encoded.ids == encode_chat(tokenizer, plain, inputs=ALL).ids
    assert [part.note for part in encoded.media] == ["c", "t"]


def test_frames_of_a_video_are_numbered(tokenizer: Tokenizer) -> None:
    encoded = encode_chat(
        tokenizer, user([{"type": "video", "video": [PNG, PNG]}, {"type": "image", "image": PNG}]), inputs=ALL
    )
    assert [part.frame for part in encoded.media] == [0, 1, 0]
    assert encoded.places[1] == encoded.places[0] + 1


def test_a_video_file_becomes_its_frames(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.data.media import video

    monkeypatch.setattr(
        video, "video_frames", lambda source: [PNG] * (3 if source == MediaRef("video", "a.mp4") else 0)
    )
    encoded = encode_chat(tokenizer, user([{"type": "video", "video": "a.mp4"}]), inputs=ALL)
    assert [part.frame for part in encoded.media] == [0, 1, 2]


def test_sources_come_out_in_one_form(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    sound = base64.b64encode(b"RIFF").decode()
    content = [
        {"type": "image", "image": "a.png", "archive": "x.zip"},
        {"type": "image", "image": {"path": "a.png", "archive": "x.zip"}},
        {"type": "image", "image": {"bytes": PNG, "path": None}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "audio", "audio": tmp_path / "b.wav"},
        {"type": "image_url", "image_url": "file:///c%20d.png"},
    ]
    (message,) = check_messages(user(content), inputs=ALL, root=tmp_path)
    parts = message["content"]
    assert isinstance(parts, list)
    archived = MediaRef("image", str(tmp_path / "x.zip"), "a.png")
    expected = [archived, archived, PNG, PNG, b"RIFF", MediaRef("audio", str(tmp_path / "b.wav"))]
    assert [part[part["type"]] for part in parts] == [*expected, MediaRef("image", "/c d.png")]


def test_bare_values_are_parts() -> None:
    messages = as_messages(["what is it?", PNG, (b"", 8000), Path("x.FLAC"), b"RIFF....WAVE"])
    assert [part["type"] for part in messages[0]["content"]] == ["text", "image", "audio", "audio", "audio"]
    assert messages[0]["content"][1]["image"] is PNG


WRONG = [
    ({"type": "image", "image": "http://x/y.png"}, "is not fetched"),
    ({"type": "image", "image": "data:image/png,abc"}, "must hold base64"),
    ({"type": "input_audio", "input_audio": {"data": "?"}}, "not valid base64"),
    ({"type": "image"}, "names no image"),
    ({"type": "image", "image": 3}, "must be a path, bytes or a PIL image, not int"),
    ({"type": "image", "image": ""}, "must be a path"),
    ({"type": "audio", "audio": "a.wav", "transcript": 3}, "its transcript must be a text"),
    ({"type": "video", "video": []}, "the video has no frames"),
    ({"type": "video", "video": "a.mp4"}, "must be a list of its frames"),
    ({"type": "image", "image": "a.png", "archive": 1}, "its archive must be a path"),
    ({"type": "smell"}, "this model has no smell input"),
]


@pytest.mark.parametrize(("part", "message"), WRONG)
def test_wrong_parts(part: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"chats:3: message 1: part 2.*{message}"):
        check_messages(user([{"type": "text", "text": "a"}, part]), "chats:3", DataError, inputs=ALL)


def test_files_can_be_refused() -> None:
    with pytest.raises(PromptError, match="files are not read here"):
        check_messages(user([{"type": "image", "image": "/etc/passwd"}]), inputs=ALL, files=False)


def test_only_what_the_model_understands(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="no audio input"):
        encode_chat(tokenizer, user([{"type": "audio", "audio": "a.wav"}]), inputs=("image",))
    with pytest.raises(PromptError, match="no video input, only text"):
        encode_chat(tokenizer, user([{"type": "video", "video": [PNG]}]))
    with pytest.raises(PromptError, match="the assistant answers in text"):
        encode_chat(
            tokenizer, [*chat("a"), {"role": "assistant", "content": [{"type": "image", "image": PNG}]}], inputs=ALL
        )


def test_tokenizers_and_templates_without_places(tokenizer: Tokenizer) -> None:
    messages = check_messages(user([{"type": "image", "image": PNG}]), inputs=ALL)
    text_only = ChatTemplate("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(PromptError, match="does not write the places of image input"):
        encode_chats(Tokenizer(tokenizer.backend, text_only, tokenizer.config), [messages])
    import tokenizers

    content = tokenizer.backend.to_str().replace("<|image|>", "<|picture|>")
    other = Tokenizer(tokenizers.Tokenizer.from_str(content), tokenizer.chat_template, tokenizer.config)
    with pytest.raises(PromptError, match=r"this tokenizer has no token <\|image\|>"):
        encode_chats(other, [messages])


def test_what_people_hand_over_is_taken(tmp_path: Path) -> None:
    picture, rows = PNG * 9, {"array": np.zeros(100, np.float32), "sampling_rate": 16_000}
    text = base64.b64encode(picture).decode()
    for value in (text, "\n".join(text[at : at + 76] for at in range(0, len(text), 76))):
        (message,) = check_messages(
            [{"role": "user", "content": [{"type": "image", "image": value}]}], inputs=["image"], files=False
        )
        assert message["content"][0]["image"] == picture
    (message,) = check_messages(as_messages(["Hear", rows]), inputs=["audio"])
    sound: Any = message["content"][1]
    samples, rate = sound["audio"]
    assert samples is rows["array"] and rate == 16_000
    (message,) = check_messages(as_messages([{"bytes": picture, "path": None}, "?"]), inputs=["image"])
    assert message["content"][0]["image"] == picture
    for name in ("~$a.png", "~nobody/a.png"):
        (message,) = check_messages(
            [{"role": "user", "content": [{"type": "image", "image": name}]}], inputs=["image"], root=tmp_path
        )
        assert message["content"][0]["image"].path == str(tmp_path / name)
    for url, path in (("file:///a%20b.png", "/a b.png"), ("file:/a.png", "/a.png"), ("file://[x/a.png", "/a.png")):
        (message,) = check_messages([{"role": "user", "content": [{"type": "image", "image": url}]}], inputs=["image"])
        assert message["content"][0]["image"].path == path


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((Path(f"a{end}"), "audio") for end in (".au", ".w64", ".caf", ".WAV", ".opus", ".wma")),
        *((Path(f"a{end}"), "video") for end in (".webm", ".mp4", ".MOV", ".mkv", ".avi")),
        *((Path(f"a{end}"), "image") for end in (".png", ".gif", ".tiff", "")),
        (b"FORM\0\0\0\0AIFF", "audio"),
        (b".snd\0\0\0\x18", "audio"),
        (b"caff\0\1", "audio"),
        (b"RF64\xff\xff\xff\xffWAVEds64", "audio"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6", "audio"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"no format at all", "image"),
    ],
)
def test_the_kind_of_a_bare_value(value: object, kind: str) -> None:
    assert kind_of_value(value) == kind


@pytest.mark.parametrize("prompt", [0, 1.5, True, {"a": 1}, {}, None, [[]], [None], [1, 2]])
def test_what_is_no_prompt_is_refused(tokenizer: Tokenizer, prompt: Any) -> None:
    with pytest.raises(PromptError):
        encode_chat(tokenizer, as_messages(prompt), inputs=ALL)


@given(st.binary(max_size=30).map(lambda data: base64.b64encode(data).decode()) | st.text("AQ=+é \n", max_size=20))
@example("AAAAAA==AAAA")
@example("AAA=AAAA")
@example("AAAAAAA==")
def test_base64_is_decoded_in_slices_as_in_one(text: str) -> None:
    def result(decode: Any) -> bytes | None:
        try:
            decoded: bytes = decode(text)
        except ValueError:
            return None
        return decoded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content_parts, "_SLICE", 4)
        assert result(content_parts._decoded) == result(lambda text: base64.b64decode(text, validate=True))
