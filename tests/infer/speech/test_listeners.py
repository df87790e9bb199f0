"""Listeners to texts that still come share one speaker: side by side, and each hears what it would hear alone."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from muomni import MuOmni
from muomni.data.text.tokenizer import Tokenizer
from muomni.infer.speech import SpeechSettings, TextSpeech, speak_pieces
from muomni.infer.speech.speaker import Speaker
from tests.infer.speech.models import make_speaking

TEXTS = ("Hello there! What is this?", "The dog slept.", "The cat sat on the mat, and then the dog ate the bone.")


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> MuOmni:
    return make_speaking(small_tokenizer)


@pytest.fixture(scope="module")
def alone(model: MuOmni) -> list[Tensor]:
    sounds = [model.say(text, seed=seed).audio for seed, text in enumerate(TEXTS)]
    assert min(float(sound.abs().max()) for sound in sounds) > 0.01
    assert not torch.allclose(sounds[0], model.say(TEXTS[0], seed=7).audio[: len(sounds[0])], atol=1e-3)
    return sounds


def listen(model: MuOmni, number: int, size: int = 5) -> tuple[TextSpeech, Iterator[Any]]:
    tokenizer, pool = model.tokenizer, model.runtime.speakers
    assert tokenizer is not None
    speech = TextSpeech(model, tokenizer, pool, SpeechSettings(seed=number))
    text = TEXTS[number]
    return speech, speak_pieces(speech, [text[at : at + size] for at in range(0, len(text), size)])


def in_turn(streams: list[Iterator[Any]]) -> list[Tensor]:
    """What each hears, a piece each in turn."""
    heard: list[list[Tensor]] = [[] for _ in streams]
    going = dict(enumerate(streams))
    while going:
        for number, stream in list(going.items()):
            piece = next(stream, None)
            if piece is None:
                del going[number]
            else:
                heard[number].append(piece.audio)
    return [torch.cat(pieces) for pieces in heard]


def check(heard: list[Tensor], alone: list[Tensor]) -> None:
    for got, expected in zip(heard, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_listeners_are_computed_side_by_side_and_hear_what_they_hear_alone(
    model: MuOmni, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []
    compute = Speaker._compute

    def counted(self: Speaker, backbone: Any, sentences: Any, count: int) -> None:
        rows.append((len(sentences), count))
        compute(self, backbone, sentences, count)

    monkeypatch.setattr(Speaker, "_compute", counted)
    streams = [listen(model, number, 60) for number in range(3)]
    shared = {id(speech._speaker) for speech, _ in streams}
    assert len(shared) == 1
    check(in_turn([stream for _, stream in streams]), alone)
    steps = sum(count for _, count in rows)
    work = sum(size * count for size, count in rows)
    assert steps < 0.8 * work and max(size for size, _ in rows) == 3
    shared_speaker = model.runtime.speakers._shared
    assert shared_speaker is not None and shared_speaker.listeners == 0
    assert shared_speaker.slots.free == shared_speaker.slots.count and not shared_speaker._rows


def test_threads_hear_what_they_hear_alone(model: MuOmni, alone: list[Tensor]) -> None:
    heard: list[Tensor] = [torch.empty(0)] * 3

    def hear(number: int) -> None:
        heard[number] = torch.cat([piece.audio for piece in listen(model, number)[1]])

    threads = [threading.Thread(target=hear, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    check(heard, alone)


@pytest.mark.parametrize("gone", [0, 2])
def test_who_leaves_takes_nothing_from_the_others(model: MuOmni, alone: list[Tensor], gone: int) -> None:
    streams = [listen(model, number)[1] for number in range(3)]
    for stream in streams:
        next(stream)
    left: Any = streams[gone]
    left.close()
    speaker = model.runtime.speakers._shared
    assert speaker is not None and speaker.listeners == 2 and len(speaker._rows) <= 2
    rest = [number for number in range(3) if number != gone]
    whole = in_turn([streams[number] for number in rest])
    for number, got in zip(rest, whole, strict=True):
        torch.testing.assert_close(got, alone[number][-len(got) :], rtol=0, atol=1e-5)
    assert speaker.listeners == 0


def test_more_listeners_than_slots_get_another_speaker(
    model: MuOmni, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muomni.infer.speech.speaker._LISTENERS", 2)
    model.weights_changed()
    streams = [listen(model, number) for number in range(3)]
    assert len({id(speech._speaker) for speech, _ in streams}) == 2
    check(in_turn([stream for _, stream in streams]), alone)
    model.weights_changed()


@pytest.mark.parametrize("place", ["hidden", "_look", "_sweep"])
def test_an_interrupted_turn_of_one_costs_the_others_nothing(
    model: MuOmni, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    streams = [listen(model, number)[1] for number in range(3)]
    first = [next(stream).audio for stream in streams[1:]]
    speaker = model.runtime.speakers._shared
    assert speaker is not None
    owner: Any = speaker._backbones.now if place == "hidden" else speaker
    method, calls = getattr(owner, place), [0]

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return method(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(streams[0])
    rest = in_turn(streams[1:])
    check([torch.cat(parts) for parts in zip(first, rest, strict=True)], alone[1:])
    assert speaker.listeners == 0 and speaker.slots.free == speaker.slots.count
