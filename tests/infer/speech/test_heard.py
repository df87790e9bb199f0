import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from muomni import MuOmni
from muomni.infer.speech import SaidWords, SpeechSettings, TextSpeech, speak_pieces
from tests.infer.speech.models import make_speaking

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

TEXT = "The cat sat on the mat. It has 12 bones, and 1 dog!"


def test_a_word_is_heard_from_its_middle_on() -> None:
    said = SaidWords()
    assert said.heard(9.0) == 0
    said.add(0.0, 0.1, [3, 3, 7])
    said.add(0.3, 0.1, [7])
    said.add(0.6, 0.1, [11, 11])  # behind a pause
    assert [tuple(round(value, 3) for value in word) for word in said.words] == [
        (0.0, 0.2, 3),
        (0.2, 0.4, 7),
        (0.6, 0.8, 11),
    ]
    for seconds, text_end in ((0, 0), (0.09, 0), (0.11, 3), (0.29, 3), (0.31, 7), (0.69, 7), (0.71, 11), (9, 11)):
        assert said.heard(seconds) == text_end, seconds


def speak(model: MuOmni, size: int, pattern_seed: int = 3) -> tuple[TextSpeech, float]:
    assert model.tokenizer is not None
    speech = TextSpeech(model, model.tokenizer, model.runtime.speakers, SpeechSettings(seed=pattern_seed))
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    samples = sum(len(piece.audio) for piece in speak_pieces(speech, pieces) if piece.audio is not None)
    return speech, samples / speech.sample_rate


@pytest.mark.parametrize("pattern", ["depth", "delay"])
def test_the_words_of_a_text_are_said_one_after_the_other(small_tokenizer: "Tokenizer", pattern: str) -> None:
    model = make_speaking(small_tokenizer, pattern)  # type: ignore[arg-type]
    speech, seconds = speak(model, 7)
    words = speech.said.words
    ends = [at for at in range(1, len(TEXT) + 1) if at == len(TEXT) or TEXT[at] == " "]
    late = model.codec.config.delay / speech.sample_rate  # of the last frame that is not given
    assert {word.text_end for word in words} <= set(ends)
    assert len(words) > len(ends) / 2 and words[-1].text_end == len(TEXT)
    assert words[0].begin == 0 and abs(words[-1].end - seconds) < 0.1
    for before, word in itertools.pairwise(words):
        assert before.text_end < word.text_end and before.begin < before.end
        gap = word.begin - before.end
        assert abs(gap - (0.25 - late if before.text_end == TEXT.index(".") + 1 else 0)) < 1e-9
    assert TEXT[: speech.said.heard(seconds)] == TEXT
    for size in (1, len(TEXT)):
        assert np.allclose(speak(model, size)[0].said.words, words)


def test_frames_are_said_where_the_pointer_stands(small_tokenizer: "Tokenizer") -> None:
    model = make_speaking(small_tokenizer)
    assert model.tokenizer is not None
    speech = TextSpeech(model, model.tokenizer, model.runtime.speakers, SpeechSettings(seed=1))
    speech.push("The cat sat on the mat.")
    speech.finish()
    (sentence,) = speech._sentences
    while not speech.ended:
        speech.work()
    speech.close()
    assert sentence.frames is not None
    units = sentence.units(0, sentence.frames)
    assert units[0] == 0 and units[-1] == sentence.text.end
    assert all(0 <= after - before <= 3 for before, after in itertools.pairwise(units))
