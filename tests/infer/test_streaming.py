"""Text streams: whole characters, stop texts across token borders, ends and lengths."""

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muomni.config import preset
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import PromptError
from muomni.infer import Engine, Runners, SamplingParams, TextStream
from muomni.infer.preprocess import EngineInput, token_budget
from muomni.infer.streaming import StopTexts
from muomni.model import OmniModel, SlotCache


class Scripted:
    """A runner that says the given tokens, whatever the prompt, and then the first of them for ever."""

    can_greedy = False
    own_threads = False
    batch_invariant = True

    def __init__(self, vocabulary: int, script: Sequence[int], prompt: int) -> None:
        self.vocabulary, self.script, self.prompt = vocabulary, list(script), prompt

    def forward(
        self, tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.zeros(len(wanted), self.vocabulary)
        for row, position in enumerate(positions[wanted].tolist()):
            said = position + 1 - self.prompt
            logits[row, self.script[said] if said < len(self.script) else self.script[0]] = 1.0
        return logits

    def greedy(self, *_: object) -> torch.Tensor:
        raise NotImplementedError


def engine(tokenizer: Tokenizer, script: Sequence[int], prompt: int = 1) -> Engine:
    config = preset("nano")
    thinker = config.thinker.replace(vocab_size=tokenizer.vocab_size)
    model = OmniModel(config.replace(thinker=thinker))
    runner = Scripted(tokenizer.vocab_size, script, prompt)
    return Engine(model, SlotCache(thinker, 2, 256), Runners(cast("Any", runner)))


def text_stream(engine: Engine, tokenizer: Tokenizer, ids: list[int], params: SamplingParams) -> TextStream:
    limit = token_budget(engine.model, (1, len(ids)), params)
    return TextStream(engine, tokenizer, EngineInput(ids, params, limit))


def stream(tokenizer: Tokenizer, script: Sequence[int], **sampling: Any) -> TextStream:
    chosen = {"temperature": 0, "max_new_tokens": len(script)} | sampling
    return text_stream(engine(tokenizer, script), tokenizer, [5], SamplingParams(**chosen))


def stopped_by_definition(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


# A letter for each of: one token, another, a character of several bytes; few, so that stop texts overlap.
letters = st.sampled_from(["a", "b", "🙂"])


@settings(max_examples=400)
@given(
    text=st.lists(letters, max_size=14).map("".join),
    stops=st.lists(st.lists(letters, min_size=1, max_size=5).map("".join), max_size=4),
    cuts=st.lists(st.integers(0, 14), max_size=14),
)
@example(text="bab🙂", stops=["ab", "bab🙂"], cuts=[])
@example(text="ab", stops=["ab"], cuts=[1])
def test_stop_texts_are_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, found = stopped_by_definition(text, stops)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    matcher = StopTexts(stops)
    said = ""
    for start, end in pairwise(bounds):
        said += matcher.push(text[start:end])
        assert expected.startswith(said), "text was shown that does not belong to the reply"
        if not matcher.found:
            # Nothing waits longer than it must: what is held back begins a stop text.
            held = text[len(said) : end]
            assert not held or any(stop.startswith(held) for stop in stops)
    said += matcher.finish()
    assert (said, matcher.found) == (expected, found)


TEXTS = ["The cat sat on the mat.", "Zürich 🙂👩‍👩‍👧 日本 ok", "a", "🙂" * 5, "tabs\tand\nlines\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(small_tokenizer: Tokenizer, text: str) -> None:
    ids = small_tokenizer.encode(text)
    running = stream(small_tokenizer, [*ids, small_tokenizer.im_end_id], max_new_tokens=100)
    pieces = list(running)
    reply = running.reply
    assert "".join(piece.text for piece in pieces) == reply.text == str(reply) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert sum((piece.tokens for piece in pieces), ()) == reply.tokens == (*ids, small_tokenizer.im_end_id)
    assert reply.finish_reason == "stop"
    assert (reply.timing.prompt_tokens, reply.timing.new_tokens) == (1, len(ids) + 1)
    assert reply.audio is None and reply.sample_rate is None


def test_each_piece_comes_when_its_character_is_complete(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("🙂🙂")
    assert len(ids) == 8
    assert [(piece.text, len(piece.tokens)) for piece in stream(small_tokenizer, ids)] == [("🙂", 4), ("🙂", 4)]


def test_an_unfinished_character_is_shown_as_such(small_tokenizer: Tokenizer) -> None:
    reply = stream(small_tokenizer, small_tokenizer.encode("ok🙂")[:-1]).finish()
    assert reply.text == "ok\ufffd"
    assert reply.finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("The cat sat on the mat.", " on the", "The cat sat"),
        ("The cat sat on the mat.", "at s", "The c"),
        ("The cat sat on the mat.", ["zebra", ".", "mat"], "The cat sat on the "),
        ("one 🙂 two", "🙂", "one "),
        ("one 🙂 two", "e 🙂 t", "on"),
        ("one 日本語 two", "本", "one 日"),
        ("The cat", "T", ""),
    ],
)
def test_a_stop_text_ends_the_reply_before_it(
    small_tokenizer: Tokenizer, text: str, stop: str | list[str], expected: str
) -> None:
    ids = small_tokenizer.encode(text)
    running = stream(small_tokenizer, ids, stop=stop, max_new_tokens=100)
    assert "".join(piece.text for piece in running) == expected
    assert running.reply.text == expected
    assert running.reply.finish_reason == "stop"
    assert running.reply.tokens == tuple(ids[: len(running.reply.tokens)])
    assert len(running.reply.tokens) <= len(ids)


def test_text_that_only_begins_a_stop_text_is_shown_at_the_end(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("The cat sat")
    for end, reason in ([], "length"), ([small_tokenizer.eos_id], "stop"):
        reply = stream(small_tokenizer, ids + end, stop="sat down").finish()
        assert (reply.text, reply.finish_reason) == ("The cat sat", reason)


def test_both_end_tokens_end_a_reply_and_the_configuration_decides(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode("The cat sat")
    for end in (small_tokenizer.im_end_id, small_tokenizer.eos_id):
        assert stream(small_tokenizer, [*ids, end, *ids]).finish().text == "The cat sat"
    scripted = engine(small_tokenizer, ids)
    scripted.model.config = scripted.model.config.replace(eos_token_ids=(ids[1],))
    reply = text_stream(scripted, small_tokenizer, [5], SamplingParams(temperature=0)).finish()
    assert reply.tokens == tuple(ids[:2])
    assert reply.text == small_tokenizer.decode(ids[:1])


def test_ignore_eos_goes_on_and_leaves_the_end_token_out_of_the_text(small_tokenizer: Tokenizer) -> None:
    ids = [*small_tokenizer.encode("The cat"), small_tokenizer.eos_id, *small_tokenizer.encode(" sat")]
    reply = stream(small_tokenizer, ids, ignore_eos=True).finish()
    assert (reply.text, reply.tokens, reply.finish_reason) == ("The cat sat", tuple(ids), "length")


def test_the_context_ends_a_reply(small_tokenizer: Tokenizer) -> None:
    scripted = engine(small_tokenizer, small_tokenizer.encode("a"), prompt=250)
    reply = text_stream(scripted, small_tokenizer, [5] * 250, SamplingParams(temperature=0)).finish()
    assert len(reply.tokens) == 6
    assert reply.finish_reason == "length"


def test_a_prompt_without_room_is_refused_before_the_first_piece(small_tokenizer: Tokenizer) -> None:
    scripted = engine(small_tokenizer, [5])
    with pytest.raises(PromptError, match="256 tokens and the model's context is 256"):
        text_stream(scripted, small_tokenizer, [5] * 256, SamplingParams())
    with pytest.raises(PromptError, match="empty"):
        text_stream(scripted, small_tokenizer, [], SamplingParams())


def test_an_unread_stream_has_no_reply_and_can_be_closed(small_tokenizer: Tokenizer) -> None:
    scripted = engine(small_tokenizer, small_tokenizer.encode("The cat sat"))
    model = scripted.model.train()
    running = text_stream(scripted, small_tokenizer, [5], SamplingParams(temperature=0))
    first = next(running)
    with pytest.raises(RuntimeError, match="not finished"):
        _ = running.reply
    assert not model.training
    running.close()
    assert model.training
    assert running.text == first.text
    assert list(running) == []


def test_the_readers_own_time_is_not_counted(small_tokenizer: Tokenizer) -> None:
    running = stream(small_tokenizer, small_tokenizer.encode("The cat sat on the mat."))
    for _ in running:
        time.sleep(0.1)
    timing = running.reply.timing
    assert 0 < timing.decode_s < 0.1 * (timing.new_tokens - 1)
    assert timing.tokens_per_s == pytest.approx((timing.new_tokens - 1) / timing.decode_s)


def test_an_ordinary_entry_outside_the_byte_alphabet_stands_for_itself(nano_folder: Path, tmp_path: Path) -> None:
    written = json.loads((nano_folder / "tokenizer.json").read_text())
    number = len(written["model"]["vocab"]) + len(written["added_tokens"])
    written["model"]["vocab"]["\u65e5\u672c \u2581"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    tokenizer = Tokenizer.load(tmp_path)
    stream = tokenizer.stream()
    ids = [*tokenizer.encode("The "), number, *tokenizer.encode(" cat")]
    text = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert text == "The \u65e5\u672c \u2581 cat" == tokenizer.backend.decode(ids)
