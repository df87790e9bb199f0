"""Logprobs of the server: each token with its text, whole and in chunks, as the official client reads them."""

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from muomni import MuOmni
from muomni.infer import Request, SamplingParams
from muomni.infer.logprobs import TokenLogprob
from muomni.infer.streaming import ReplyText
from muomni.serve.logprobs import ReplyLogprobs
from tests.serve.conftest import Running

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Bit by bit the same each time.
SAME: dict[str, Any] = {"model": "nano", "temperature": 0, "extra_body": {"deterministic": True}}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello there!"}], **SAME}
CAT: dict[str, Any] = {"prompt": "The cat", **SAME}


words = st.lists(st.one_of(st.sampled_from(["the cat ", "é", "😀", "日本", "a"]), st.integers(0, 299)), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words, st.lists(st.booleans(), min_size=60, max_size=60), st.sampled_from([(), ("t ",), ("本",), ("ca", "éa")]))
def test_tokens_come_with_their_text(
    small_tokenizer: "Tokenizer", pieces: list[str | int], cuts: list[bool], stops: tuple[str, ...]
) -> None:
    """In chunks as whole, and never before it, whatever the tokens, the stop texts and the chunks."""
    ids = [i for piece in pieces for i in ([piece] if isinstance(piece, int) else small_tokenizer.encode(piece))]
    end = small_tokenizer.id_of("<|im_end|>")
    request = Request(prompt=[1], params=SamplingParams(logprobs=0, stop=stops), limit=99, ends=frozenset({end}))
    text, chunks = ReplyText(small_tokenizer, stops), ReplyLogprobs(small_tokenizer, request, chat=True)
    shown, pending = "", ""
    taken: list[dict[str, Any]] = []

    def give(piece: str, *, last: bool = False) -> None:
        nonlocal shown
        shown += piece
        chunks.push(piece)
        told = chunks.take(last=last)
        taken.extend(told["content"] if told else [])
        joined = b"".join(bytes(entry["bytes"]) for entry in taken)
        if not last and "�" not in shown and not set(ids) & small_tokenizer.special_ids:
            assert shown.encode().startswith(joined)

    for number, token in enumerate([*ids, end]):
        stopped = token != end and text.push(token)
        request.logprobs.append(TokenLogprob(token, -float(number)))
        request.tokens.append(token)
        pending += text.take(number + 1)
        if cuts[number % 60] and pending:
            give(pending)
            pending = ""
        if stopped or token == end:
            break
    give(pending + text.rest())
    give("", last=True)
    count = len(taken)
    assert [entry["logprob"] for entry in taken] == [-float(number) for number in range(count)]
    whole = ReplyLogprobs(small_tokenizer, request, chat=True).whole(shown)
    assert whole == {"content": taken, "refusal": None}
    if not text.stopped:
        assert count == request.tokens.index(end)
    plain = ReplyLogprobs(small_tokenizer, request, chat=False).whole(shown)
    for token, offset in zip(plain["tokens"], plain["text_offset"], strict=True):
        if not token.startswith("bytes:") and not set(ids) & small_tokenizer.special_ids and "�" not in shown:
            assert token.startswith(shown[offset : offset + len(token)])


def test_parts_of_a_character_have_names_of_their_own(small_tokenizer: "Tokenizer") -> None:
    ids = small_tokenizer.encode("é")
    assert len(ids) == 2
    request = Request(prompt=[1], params=SamplingParams(logprobs=1), limit=9)
    request.tokens += ids
    request.logprobs += [TokenLogprob(token, -0.5, ((token, -0.5),)) for token in ids]
    chat = ReplyLogprobs(small_tokenizer, request, chat=True)
    assert chat.take() is None
    chat.push("é")
    told = chat.take()
    assert told is not None
    assert [entry["bytes"] for entry in told["content"]] == [[0xC3], [0xA9]]
    assert [entry["token"] for entry in told["content"]] == ["bytes:\\xc3", "bytes:\\xa9"]
    plain = ReplyLogprobs(small_tokenizer, request, chat=False).whole("é")
    assert plain["top_logprobs"] == [{"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}]
    assert plain["text_offset"] == [0, 0]
    request.logprobs[0] = TokenLogprob(ids[0], -float("inf"))
    assert ReplyLogprobs(small_tokenizer, request, chat=True).whole("é")["content"][0]["logprob"] == -9999.0


def test_the_official_client_reads_those_of_a_chat(client: OpenAI, alone: MuOmni) -> None:
    reply = client.chat.completions.create(**HELLO, max_tokens=12, logprobs=True, top_logprobs=3)
    expected = alone.chat("Hello there!", temperature=0, max_new_tokens=12, logprobs=3)
    told = reply.choices[0].logprobs
    assert told is not None and told.content is not None and told.refusal is None
    assert expected.logprobs is not None and expected.finish_reason == "length"
    assert [entry.logprob for entry in told.content] == pytest.approx([one.logprob for one in expected.logprobs])
    for entry in told.content:
        assert entry.bytes is not None and len(entry.top_logprobs) == 3
        first = entry.top_logprobs[0]
        assert (first.token, first.logprob, first.bytes) == (entry.token, entry.logprob, entry.bytes)
    joined = b"".join(bytes(entry.bytes or ()) for entry in told.content)
    assert joined.decode(errors="replace") == reply.choices[0].message.content

    entries: list[Any] = []
    text = ""
    for chunk in client.chat.completions.create(**HELLO, max_tokens=12, logprobs=True, top_logprobs=3, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        entries += (choice.logprobs and choice.logprobs.content) or []
        so_far = b"".join(bytes(entry.bytes or ()) for entry in entries)
        assert text.startswith(so_far.decode(errors="replace"))  # half a character may come with the end
    assert text == reply.choices[0].message.content
    assert [entry.model_dump() for entry in entries] == [entry.model_dump() for entry in told.content]
    plain = client.chat.completions.create(**HELLO, max_tokens=12)
    assert plain.choices[0].logprobs is None and plain.choices[0].message.content == text
    assert plain.usage is not None and reply.usage is not None
    assert plain.usage.total_tokens == reply.usage.total_tokens
    bare = client.chat.completions.create(**HELLO, max_tokens=2, logprobs=True).choices[0].logprobs
    assert bare is not None and bare.content is not None and [entry.top_logprobs for entry in bare.content] == [[], []]


def test_the_greedy_tokens_have_the_log_softmax_of_an_own_forward_pass(client: OpenAI, alone: MuOmni) -> None:
    reply = client.completions.create(**CAT, max_tokens=8, logprobs=2, frequency_penalty=0.1)
    told = reply.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert alone.tokenizer is not None
    prompt = [*alone.tokenizer.begin_ids, *alone.tokenizer.encode("The cat")]
    new = alone.complete("The cat", temperature=0, max_new_tokens=8, frequency_penalty=0.1).tokens
    with torch.inference_mode():
        logits = alone(torch.tensor([[*prompt, *new]])).logits[0, len(prompt) - 1 : -1].float()
    expected = logits.log_softmax(-1)[torch.arange(8), torch.tensor(new)].tolist()
    assert told.token_logprobs == pytest.approx(expected, abs=1e-4)
    for top, token, logprob in zip(told.top_logprobs, told.tokens or (), told.token_logprobs, strict=True):
        assert 2 <= len(top) <= 3 and top[token] == logprob and max(top.values()) == next(iter(top.values()))


def test_those_of_a_continuation_are_the_same_in_a_stream(client: OpenAI) -> None:
    whole = client.completions.create(**CAT, max_tokens=10, logprobs=1).choices[0]
    assert whole.logprobs is not None
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    text = ""
    for chunk in client.completions.create(**CAT, max_tokens=10, logprobs=1, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs is not None:
            for key, values in chunk.choices[0].logprobs.model_dump().items():
                joined[key] += values
    assert text == whole.text
    assert joined == whole.logprobs.model_dump()


def test_a_stop_text_takes_its_tokens_along(server: Running) -> None:
    whole = server.chat(max_tokens=16).json()["choices"][0]["message"]["content"]
    for begin in range(1, len(whole) - 3, 2):
        stop = whole[begin : begin + 3]
        reply = server.chat(max_tokens=16, stop=[stop], logprobs=True, seed=1).json()["choices"][0]
        content = reply["message"]["content"]
        assert content == whole[: whole.index(stop)]
        entries = reply["logprobs"]["content"]
        before = b"".join(bytes(entry["bytes"]) for entry in entries[:-1])
        joined = before + bytes(entries[-1]["bytes"] if entries else ())
        assert joined.decode(errors="replace").startswith(content)
        assert not entries or len(before.decode(errors="replace")) <= len(content)


def test_choices_of_different_lengths_end_once_with_their_own_logprobs(client: OpenAI) -> None:
    wanted: dict[str, Any] = {**CAT, "temperature": 1.5, "seed": 7, "max_tokens": 30, "n": 2, "stop": ["a", "e"]}
    wanted |= {"logprobs": 2, "presence_penalty": 0.5, "logit_bias": {"40": -100}}
    whole = client.completions.create(**wanted).choices
    assert len({len(choice.text) for choice in whole}) == 2, "the lengths are the same: take another seed"
    texts, ends, logprobs = ["", ""], [0, 0], [[], []]  # type: ignore[var-annotated]
    for chunk in client.completions.create(**wanted, stream=True):
        (choice,) = chunk.choices
        assert not ends[choice.index], "a chunk follows the end"
        texts[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason is not None
        if choice.logprobs is not None:
            logprobs[choice.index] += choice.logprobs.token_logprobs or []
    assert texts == [choice.text for choice in whole] and ends == [1, 1]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole if choice.logprobs is not None]


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": "many"}, "logprobs"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_numbers_out_of_bounds_are_refused(server: Running, path: str, more: dict[str, Any], param: str) -> None:
    body = {**(HELLO if path.startswith("chat") else CAT), "max_tokens": 2, **more}
    reply = server.http.post(f"/v1/{path}", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
