"""Pairs of text and speech as batches."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config.talker import TalkerConfig
from muomni.data import PackedDataset, SpeechDataset, SpeechPairs, Tokenizer, WithSpeech, said_words, units_of
from muomni.errors import DataError
from muomni.model.talker.batch import BEGIN, END, PAD
from tests.data import helpers

TEXTS = [
    "The dog sat.",
    "Lily said yes, and smiled.",
    "Oh!",
    "The small box ran twelve times.",
    "A cat.",
    "It was happy.",
]


def config(**more: object) -> TalkerConfig:
    values = {"thinker_layer": 1, "num_codebooks": 3, "codebook_size": 1000, "voices": ("ann", "bob")}
    return TalkerConfig.model_validate(values | more)


def make_pairs(texts: list[str] = TEXTS, max_advance: int = 8) -> SpeechPairs:
    """Code 0 of a frame says its place among all frames, and the pointer climbs as fast as it may."""
    rows = []
    for text in texts:
        last = len(units_of(said_words(text))[0]) - 1
        rows.append(np.minimum(np.arange(0, last + 2 * max_advance, max_advance), last))
    frames = np.array([len(row) for row in rows])
    total = int(frames.sum())
    return SpeechPairs(
        texts=texts,
        voices=np.arange(len(texts)) % 2,
        speakers=("ann", "bob"),
        languages=("en", "en"),
        starts=np.cumsum(frames) - frames,
        frames=frames,
        codes=np.stack([np.arange(total), np.full(total, 5), np.arange(total) % 7], 1).astype(np.uint16),
        pointers=np.concatenate(rows).astype(np.uint16),
        sources=np.zeros(len(texts), np.int64),
        frame_rate=25.0,
        left_out=(),
        key="key",
    )


def test_a_batch_holds_text_units_codes_and_moves(tokenizer: Tokenizer) -> None:
    pairs = make_pairs()
    batch = SpeechDataset(pairs, tokenizer, config(), shuffle=False).batch(0, 4)
    speech = batch.speech
    assert speech is not None and speech.frames == tuple(pairs.frames[:4]) and speech.num_frames == len(speech.codes)
    assert speech.codes.tolist() == pairs.codes[: speech.num_frames].tolist()
    assert speech.voices.tolist() == [0, 1, 0, 1]
    first = frame = 0
    for n, text in enumerate(TEXTS[:4]):
        count, width = speech.id_lengths[n], speech.unit_lengths[n]
        ids = speech.ids[first : first + count]
        said = " ".join(word.spoken for word in said_words(text))
        assert tokenizer.decode(ids.tolist()) == said
        assert batch.input_ids[n, :count].equal(ids) and bool((batch.input_ids[n, count:] == tokenizer.pad_id).all())
        assert speech.units[n, :width].tolist() == [BEGIN, *said.encode(), END]
        assert bool((speech.units[n, width:] == PAD).all()) and not speech.words[n, width:].any()
        # The text up to a unit's word is that of the tokens up to its place.
        for unit, place in enumerate(speech.words[n, 1 : width - 1].tolist()):
            begun = said.encode()[: unit + 1].decode()
            read = tokenizer.decode(speech.ids[first : place + 1].tolist())
            assert read.startswith(begun.rstrip(" ")) and read.count(" ") == begun.count(" ")
        frames = speech.frames[n]
        pointers, moves = speech.pointers[frame : frame + frames], speech.moves[frame : frame + frames]
        assert pointers[0] == 0 and pointers[-1] == width - 1
        assert (pointers[:-1] + moves[:-1]).equal(pointers[1:]) and moves[-1] == config().stop
        first, frame = first + count, frame + frames
    assert batch.num_targets == 0 and bool((batch.labels == -100).all())
    bounds = batch.cu_seqlens.tolist()
    T = batch.input_ids.shape[1]
    assert bounds[-1] == 4 * T and {n * T for n in range(4)} <= set(bounds) and len(set(bounds)) == len(bounds)
    flat = batch.positions.flatten()
    assert all(flat[a:b].equal(torch.arange(b - a)) for a, b in itertools.pairwise(bounds))
    assert batch.max_seqlen == max(b - a for a, b in itertools.pairwise(bounds))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 14), st.integers(1, 5), st.integers(1, 4))
def test_a_row_depends_on_its_number_alone(
    tokenizer: Tokenizer, seed: int, first: int, count: int, stride: int
) -> None:
    rows = SpeechDataset(make_pairs(), tokenizer, config(), seed)
    batch = rows.batch(first, count, stride).speech
    again = SpeechDataset(make_pairs(), tokenizer, config(), seed)
    assert batch is not None
    done = 0
    for n in range(count):
        alone = again.batch(first + n * stride, 1).speech
        assert alone is not None and alone.codes.equal(batch.codes[done : done + alone.num_frames])
        done += alone.num_frames
    epochs = [[rows.place(number) for number in range(e * 6, e * 6 + 6)] for e in range(4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and len({tuple(e) for e in epochs}) > 1


def test_pairs_go_with_rows_of_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = PackedDataset(helpers.numbered_index(tmp_path, [9] * 20), 10)
    speech = SpeechDataset(make_pairs(), tokenizer, config(), seed=3)
    both = WithSpeech(text, speech, 2)
    assert both.num_rows == text.num_rows
    batch = both.batch(1, 2, stride=3)
    assert batch.speech is not None and batch.input_ids.equal(text.batch(1, 2, stride=3).input_ids)
    assert batch.speech.codes.equal(speech.speech([2, 3, 8, 9]).codes)
    assert batch.id not in {text.batch(1, 2, stride=3).id, both.batch(1, 2).id}
    moved = batch.to("cpu")
    assert moved.speech is not None and moved.speech.codes.equal(batch.speech.codes)
    with pytest.raises(ValueError, match="pairs_per_sequence"):
        WithSpeech(text, speech, 0)


def test_the_same_words_are_never_on_both_sides() -> None:
    texts = [f"Number {n} ran {'home' if n % 3 else 'off'}." for n in range(60)] * 2
    train, val = make_pairs(texts).split(0.2)
    assert len(train) + len(val) == 120 and 4 <= len(val) <= 48
    assert not set(train.texts) & set(val.texts)
    assert val.key != train.key and val.seconds == pytest.approx(val.frames.sum() / 25)
    chosen = val.select(np.array([1]))
    begin = int(chosen.starts[0])
    assert chosen.texts == [val.texts[1]] and chosen.pointers[begin] == 0
    one, other = make_pairs(["One.", "Two."]).split(0.001)
    assert len(one) == len(other) == 1
    with pytest.raises(DataError, match="say the same"):
        make_pairs(["One.", "one!"]).split(0.5)


def test_pairs_that_do_not_fit_the_talker_are_refused(tokenizer: Tokenizer) -> None:
    pairs = make_pairs()
    for bad, message in [
        (config(num_codebooks=4), "another codec"),
        (config(codebook_size=10), "another codec"),
        (config(voices=("ann", "eve")), "no voice for: bob; its voices: ann, eve"),
        (config(max_advance=7), "moves of up to 8 units"),
    ]:
        with pytest.raises(DataError, match=message):
            SpeechDataset(pairs, tokenizer, bad)
    with pytest.raises(DataError, match="no pairs"):
        SpeechDataset(pairs.select(np.array([], np.int64)), tokenizer, config())
    assert SpeechDataset(replace(pairs, speakers=("bob", "ann")), tokenizer, config()).speech([0]).voices.numel() == 1
