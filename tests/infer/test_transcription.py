"""Transcripts: cut at quiet places, joined again, and in between what the model says of each piece."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni import MuOmni
from muomni.data.media.audio import Samples
from muomni.errors import MediaError, PromptError, UserError
from muomni.infer.transcription import JoinedText, Transcriber, cut

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

RATE = 16_000


def tones(seconds: float, seed: int = 0) -> Samples:
    """Words of a third of a second with pauses of a third between them."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = np.random.default_rng(seed).uniform(200, 2000, len(time) // RATE * 2 + 2)[(time * 1.5).astype(int)]
    return (0.3 * np.sin(2 * np.pi * pitch * time) * ((time * 1.5) % 1 < 0.5)).astype(np.float32)


@pytest.fixture
def model(omni: MuOmni) -> MuOmni:
    return copy.deepcopy(omni)


@settings(max_examples=60)
@given(st.floats(0.01, 20), st.floats(1, 6), st.integers(0, 9))
def test_parts_are_the_whole_and_none_is_too_long_or_too_short(seconds: float, longest: float, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=max(1, round(seconds * RATE))).astype(np.float32)
    parts = cut(samples, round(longest * RATE))
    np.testing.assert_array_equal(np.concatenate(parts), samples)
    assert max(map(len, parts)) <= round(longest * RATE)
    assert min(map(len, parts)) >= min(len(samples), RATE // 2)


def test_cuts_are_in_pauses() -> None:
    samples = tones(20)
    parts = cut(samples, 5 * RATE)
    for end in np.cumsum([len(part) for part in parts])[:-1]:
        assert not samples[end - 1600 : end + 1600].any()
    assert 4 <= len(parts) <= 8


@given(st.lists(st.lists(st.text("ab \n", max_size=6), max_size=4), max_size=4))
def test_text_is_joined_alike_however_it_comes(pieces: list[list[str]]) -> None:
    joined, heard = JoinedText(), ""
    for piece in pieces:
        for text in piece:
            heard += joined.push(text)
        joined.end_piece()
    assert heard == joined.text == " ".join(" ".join("".join(piece) for piece in pieces).split())


def test_a_transcript_is_what_the_model_says_of_each_piece(model: MuOmni, tmp_path: Path) -> None:
    short, long = tones(1.3, 1), tones(25, 2)
    soundfile.write(tmp_path / "long.wav", long, RATE, subtype="FLOAT")
    assert model.tokenizer is not None
    transcriber = Transcriber(model, model.tokenizer, max_new_tokens=12)
    pieces = transcriber.pieces((long, RATE))
    assert len(pieces) > 2 and sum(piece.seconds for piece in pieces) == 25

    def said(piece: Any, hint: str | None = None) -> str:
        system = [] if hint is None else [{"role": "system", "content": hint}]
        user = {"role": "user", "content": [piece, {"type": "text", "text": "What is said?"}]}
        return model.chat([*system, user], temperature=0, max_new_tokens=12).text

    expected = [said({"type": "audio", "audio": (short, RATE)})]
    expected.append(" ".join(said(piece.prompt[0]["content"][0]) for piece in pieces))
    expected = [" ".join(text.split()) for text in expected]
    for batch_size in (1, 3, 32):
        found = model.transcribe([(short, RATE), tmp_path / "long.wav"], max_new_tokens=12, batch_size=batch_size)
        assert [(each.text, each.seconds, each.error) for each in found] == [
            (expected[0], 1.3, None), (expected[1], 25, None)]  # fmt: skip
    (hinted,) = model.transcribe([(short, RATE)], max_new_tokens=12, hint="The cat")
    assert hinted.text == " ".join(said({"type": "audio", "audio": (short, RATE)}, "The cat").split()) != expected[0]
    assert str(hinted) == hinted.text


def test_a_reply_has_room_in_the_context_however_long_the_sound(model: MuOmni) -> None:
    assert model.tokenizer is not None
    for hint in (None, "the cat " * 20):
        transcriber = Transcriber(model, model.tokenizer, hint)
        pieces = transcriber.pieces((tones(30), RATE))
        inputs = model.runtime.prepare(
            model, model.tokenizer, [(piece.prompt, piece.params) for piece in pieces], [""] * len(pieces)
        )
        assert all(each.error is None and each.limit >= 20 for each in inputs)
        assert max(each.length for each in inputs) <= transcriber.capacity <= 256
    with pytest.raises(PromptError, match=r"takes 2\d\d of the 256 tokens .* no room is left to hear it"):
        Transcriber(model, model.tokenizer, "the cat " * 100)


def test_a_sound_that_cannot_be_read_leaves_the_others(model: MuOmni, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("This is no sound, but a text of some length.")
    sounds: list[Any] = [(tones(1), RATE), tmp_path / "text.wav", tmp_path / "none.wav", (tones(1), RATE)]
    found = model.transcribe(sounds, on_error="reply", max_new_tokens=4)
    assert found[0] == found[3] and found[0].error is None
    assert "text.wav" in str(found[1].error) and found[1].text == ""
    assert "none.wav: no such file" in str(found[2].error)
    with pytest.raises(MediaError, match=r"text\.wav"):
        model.transcribe(sounds, max_new_tokens=4)
    assert model.transcribe([], max_new_tokens=4) == []


def test_what_cannot_be_transcribed_is_told(model: MuOmni, small_tokenizer: "Tokenizer", nano_folder: Path) -> None:
    with pytest.raises(PromptError, match="sounds must be a list, not str"):
        model.transcribe("a.wav")
    with pytest.raises(PromptError, match="temperature"):
        model.transcribe([], temperature=-1)
    with pytest.raises(UserError, match="no audio encoder"):
        MuOmni.from_pretrained(nano_folder, device="cpu").transcribe([(tones(1), RATE)])
