"""A model with a talker, of random weights, as what is evaluated and the bench times."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from muomni import MuOmni
from muomni.bench.speech import SpeechCase, SpeechSubject
from muomni.errors import PromptError, SpeechError, UserError
from muomni.eval.model_speaker import ModelSpeaker
from muomni.eval.speech_quality import StreamingSpeaker, say_timed
from muomni.infer import Reply
from muomni.infer.speech import speech_of
from tests.infer.speech.models import make_speaking

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

TEXT = "The cat sat. And then 2 dogs slept!"


@pytest.fixture(scope="module")
def model(small_tokenizer: "Tokenizer") -> MuOmni:
    return make_speaking(small_tokenizer)


def test_in_pieces_it_says_the_same_as_whole(model: MuOmni) -> None:
    speaker = ModelSpeaker(model, temperature=0.5, seed=3)
    assert isinstance(speaker, StreamingSpeaker)
    whole, rate = speaker.say(TEXT, voice="ben")
    pieces = list(speaker.say_chunks(TEXT, voice="ben"))
    assert len(pieces) > 2 and {each for _, each in pieces} == {rate}
    np.testing.assert_allclose(np.concatenate([samples for samples, _ in pieces]), whole, atol=1e-5)
    reply = model.say(TEXT, voice="ben", temperature=0.5, seed=3)
    assert reply.audio is not None
    np.testing.assert_array_equal(whole, reply.audio.numpy())
    assert len(speaker.say(TEXT, voice="anna")[0]) > 0
    timed = say_timed(speaker, TEXT, None)
    assert timed.first is not None and 0 < timed.first < timed.seconds


def test_what_cannot_be_said_is_an_error(model: MuOmni, nano_folder: Path) -> None:
    speaker = ModelSpeaker(model)
    for say in (speaker.say, lambda text: list(speaker.say_chunks(text))):
        with pytest.raises(SpeechError, match="nothing to say"):
            say("?! ...")
    with pytest.raises(PromptError, match="anna, ben"):
        speaker.say(TEXT, voice="carl")
    with pytest.raises(SpeechError, match="no speech came for 'Hello': it broke"):
        speech_of(Reply("Hello", (), "error", Reply.failed("").timing, error="it broke"))
    with pytest.raises(UserError, match="does not speak"):
        ModelSpeaker(MuOmni.from_pretrained(nano_folder, device="cpu"))


@pytest.mark.parametrize(("weights", "rows"), [("float", 1), ("int8", 2)])
def test_a_case_of_the_bench_speaks(weights: str, rows: int, model: MuOmni, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    case = SpeechCase(
        name="a",
        model=str(tmp_path / "model"),
        texts=("The cat sat.", "The dog."),
        rows=rows,
        weights=weights,  # type: ignore[arg-type]
        runner="eager",
        temperature=0.0,
        firsts=1,
        threads=1,
    )
    subject = SpeechSubject(case)
    assert subject.model.runner == "eager"
    turn = subject.turn()
    rate = model.config.codec.sample_rate if model.config.codec is not None else 0
    assert turn["audio_s"] == pytest.approx(sum(subject.first["samples"]) / rate)
    assert turn["work_s"] > 0 and (turn["first_ms"] is None) == (rows > 1)
