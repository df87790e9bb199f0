"""Log-probabilities of texts, against a pass over each text alone."""

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.eval.likelihood import likelihoods
from muomni.eval.texts import bits_per_byte, endings, minimal_pairs

if TYPE_CHECKING:
    from muomni import MuOmni
    from muomni.data import Tokenizer

TEXTS = st.text("abc the dog sat. Hé!", min_size=1, max_size=40)


def alone(model: "MuOmni", tokenizer: "Tokenizer", before: str, after: str) -> float:
    """The definition: one text, its logits, its predicted tokens."""
    first, rest = tokenizer.encode(before), tokenizer.encode(after)
    ids = torch.tensor([[*first, *rest]])
    if ids.shape[1] < 2:
        return 0.0
    with torch.inference_mode():
        logits = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, ids[0, place]]) for place in range(max(1, len(first)), ids.shape[1]))


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(st.one_of(st.just(""), TEXTS), TEXTS), min_size=1, max_size=6), most=st.integers(1, 60))
def test_it_is_the_definition(
    omni: "MuOmni", small_tokenizer: "Tokenizer", pairs: list[tuple[str, str]], most: int
) -> None:
    done: list[int] = []
    found = likelihoods(omni.eval(), small_tokenizer, pairs, tokens_at_once=most, report=done.append)
    assert sum(done) == len(pairs)
    for pair, one in zip(pairs, found, strict=True):
        assert one.nats == pytest.approx(alone(omni, small_tokenizer, *pair), abs=1e-3)
        if pair[0]:
            assert one.size == len(pair[1].encode())


def test_a_training_model_is_refused(omni: "MuOmni", small_tokenizer: "Tokenizer") -> None:
    omni.train()
    try:
        with pytest.raises(ValueError, match="evaluation mode"):
            likelihoods(omni, small_tokenizer, [("", "a cat")])
    finally:
        omni.eval()


def test_pairs_and_endings_choose_the_likelier(omni: "MuOmni", small_tokenizer: "Tokenizer") -> None:
    texts = ["The cat sat on the mat.", "The dog ate the bone.", "Hello there!", "What is this?"]
    nats = [alone(omni, small_tokenizer, "", text) for text in texts]
    rows = [
        {"good": a, "bad": b, "field": a[:3]} for a, b in zip(texts[:2] + texts[2:], texts[2:] + texts[:2], strict=True)
    ]
    found = minimal_pairs(omni.eval(), small_tokenizer, rows)
    assert found["all"].count == sum(nats[n] > nats[(n + 2) % 4] for n in range(4))
    assert sum(share.total for name, share in found.items() if name != "all") == 4
    story = "The dog slept."
    values = [alone(omni, small_tokenizer, f"{story} ", text) / len(text.encode()) for text in texts]
    best = values.index(max(values))
    asked = [{"context": story, "choices": texts, "answer": n} for n in range(4)]
    share = endings(omni, small_tokenizer, asked)
    assert (share.count, share.total) == (1, 4)
    assert endings(omni, small_tokenizer, [asked[best]]).rate == 1


def test_bits_per_byte_of_short_and_long_texts(omni: "MuOmni", small_tokenizer: "Tokenizer") -> None:
    text = "The cat sat on the mat."
    found = bits_per_byte(omni.eval(), small_tokenizer, [text, text])
    first = len(small_tokenizer.decode(small_tokenizer.encode(text)[:1]).encode())
    assert found.size == 2 * (len(text) - first)
    assert found.bits == pytest.approx(-2 * alone(omni, small_tokenizer, "", text) / found.size / math.log(2), rel=1e-4)
    long = " ".join(["the dog slept"] * 400)
    assert len(small_tokenizer.encode(long)) > omni.config.thinker.max_position_embeddings
    assert bits_per_byte(omni, small_tokenizer, [long]).size > 0.95 * len(long)
