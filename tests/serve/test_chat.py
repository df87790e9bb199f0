import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from PIL import Image

from muomni import MuOmni
from tests.serve.conftest import Running, run

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


def events(text: str) -> Iterator[dict[str, Any]]:
    lines = text.split("\n\n")
    assert lines[-1] == ""
    assert lines[-2] == "data: [DONE]"
    for line in lines[:-2]:
        assert line.startswith("data: ")
        assert line.isascii()
        assert "\n" not in line
        yield json.loads(line.removeprefix("data: "))


def picture_url(color: str = "red", size: tuple[int, int] = (32, 24)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_reply_is_what_chat_gives(client: OpenAI, alone: MuOmni) -> None:
    reply = client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Hello there!"}], **GREEDY
    )
    expected = alone.chat("Hello there!", temperature=0, max_new_tokens=12)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == expected.finish_reason
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == expected.timing.prompt_tokens
    assert reply.usage.completion_tokens == expected.timing.new_tokens


def test_a_stream_joins_to_the_whole_reply(server: Running) -> None:
    whole = server.chat(max_tokens=20).json()
    chunks = list(events(server.chat(max_tokens=20, stream=True).text))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_last_where_it_is_asked_for(server: Running) -> None:
    chunks = list(events(server.chat(stream=True, stream_options={"include_usage": True}).text))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_choices_of_one_request_differ_and_each_ends_once(server: Running) -> None:
    settings = {"n": 3, "temperature": 1.0, "seed": 4, "max_tokens": 6}
    whole = [choice["message"]["content"] for choice in server.chat(**settings).json()["choices"]]
    assert len(set(whole)) > 1
    texts, ends = [""] * 3, [0] * 3
    for chunk in events(server.chat(stream=True, **settings).text):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] += choice["finish_reason"] is not None
    assert texts == whole
    assert ends == [1, 1, 1]


def test_many_at_once_are_answered_as_alone(server: Running, alone: MuOmni) -> None:
    texts = ["Hello there!", "What is this?", "The cat sat on the mat.", "The dog", "bone", "slept"]

    async def ask() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(model="nano", messages=[{"role": "user", "content": text}], **GREEDY)
                for text in texts
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    assert run(ask()) == [alone.chat(text, temperature=0, max_new_tokens=12).text for text in texts]


def test_pictures_and_sounds_are_seen_and_heard(server: Running, alone: MuOmni, wav: bytes) -> None:
    sound = base64.b64encode(wav).decode()
    image = {"type": "image_url", "image_url": {"url": picture_url()}}
    question = {"type": "text", "text": "What is this?"}
    sounds = [
        sound,
        f"data:audio/x-wav;codecs=1;base64,{sound}",
        "\n".join(sound[i : i + 76] for i in range(0, len(sound), 76)),
    ]
    for data in (*sounds, sound.rstrip("=")):
        content = [image, {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}, question]
        reply = server.chat(content).json()
        assert reply["usage"]["prompt_tokens_details"]["image_tokens"] > 0
        assert reply["usage"]["prompt_tokens_details"]["audio_tokens"] > 0
        prompt = [base64.b64decode(picture_url().partition(",")[2]), wav, "What is this?"]
        assert reply["choices"][0]["message"]["content"] == alone.chat(prompt, temperature=0, max_new_tokens=8).text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/x.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "input_audio", "input_audio": {"path": "/etc/passwd"}},
        {"type": "input_audio", "input_audio": {"url": "file:///etc/passwd", "archive": "x.zip"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
def test_nothing_is_read_from_this_machine_or_the_network(server: Running, part: dict[str, Any]) -> None:
    reply = server.chat([part])
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert "root:" not in reply.text


def test_a_stop_text_never_leaks(server: Running) -> None:
    whole = server.chat(max_tokens=20).json()["choices"][0]["message"]["content"]
    for begin in range(1, len(whole) - 3):
        stop = whole[begin : begin + 3]
        chunks = list(events(server.chat(max_tokens=20, stream=True, stop=[stop]).text))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == whole[: whole.index(stop)]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_plain_text_is_continued(client: OpenAI, alone: MuOmni) -> None:
    reply = client.completions.create(model="nano", prompt="The cat", temperature=0, max_tokens=6)
    assert reply.choices[0].text == alone.complete("The cat", temperature=0, max_new_tokens=6).text
    streamed = client.completions.create(model="nano", prompt="The cat", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == reply.choices[0].text


def test_an_assistant_without_content_is_history(server: Running) -> None:
    histories: list[dict[str, Any]] = [{"content": None}, {}, {"content": ""}, {"content": []}]
    for content in histories:
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", **content}, {"role": "user", "content": "Go"}]
        reply = server.http.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 2})
        assert reply.status_code == 200, reply.text


def test_developers_are_the_system_and_neighbours_are_joined(server: Running) -> None:
    def tokens(messages: list[dict[str, Any]]) -> int:
        reply = server.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
        return int(reply.json()["usage"]["prompt_tokens"])

    apart = [
        {"role": "developer", "content": "The cat"},
        {"role": "user", "content": "A"},
        {"role": "user", "content": "B"},
    ]
    joined = [{"role": "system", "content": "The cat"}, {"role": "user", "content": "A\nB"}]
    assert tokens(apart) == tokens(joined)


def test_mistakes_are_told_in_openais_form(client: OpenAI, server: Running) -> None:
    with pytest.raises(NotFoundError, match="there is no model"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(BadRequestError, match="context") as error:
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "Hi " * 400}])
    assert error.value.code == "context_length_exceeded"
    for wrong in ({"temperature": -1}, {"temperature": "hot"}, {"n": 0}, {"n": 1000}, {"top_p": 2}, {"stop": [""]}):
        reply = server.chat(**wrong)
        assert reply.status_code == 400
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_what_would_change_the_reply_is_refused_and_the_rest_is_named(server: Running) -> None:
    for key in ("functions", "function_call"):
        reply = server.chat(**{key: [{}]})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, key)
    neutral = {
        "tools": [],
        "logprobs": False,
        "user": "me",
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
    }
    assert "x-ignored-parameters" not in server.chat(**neutral).headers
    assert server.chat(frobnicate=1).headers["x-ignored-parameters"] == "frobnicate"


def test_any_text_passes_through_a_stream(server: Running) -> None:
    text = "".join(map(chr, [0x85, 0x2028, 0x2029, 0x1F600, 0xE000, 10, 13, 9, 0x7F]))
    assert len(list(events(server.chat(text, stream=True).text))) > 1
