"""Speech quality: speakers with known faults, heard by a stand-in that hears perfectly, and by the real one."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muomni.data.media.audio import Samples
from muomni.data.speech.espeak_client import Synthesiser
from muomni.data.speech.synthesis import resample, trim_silence
from muomni.errors import DataError, MuOmniError, UserError
from muomni.eval import speech_quality
from muomni.eval.recogniser import Recogniser, check_installed
from muomni.eval.speech_quality import (
    Limits,
    Sentence,
    SentenceResult,
    SpeechReport,
    Spoken,
    evaluate_speech,
    plot_spectrograms,
    read_sentences,
)
from muomni.eval.wer import word_errors

RATE = 16_000
WORDS = ["once", "upon", "a", "time", "there", "was", "little", "cat", "that", "sat", "on", "the", "big", "red", "mat"]
TEXTS = ["Once upon a time there was a cat.", "The little cat sat on the big red mat.", "That was the time."]
SAME = Limits(real_time=1e9, first_sound=1e9)
needs_both = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("espeakng_loader", "pocketsphinx")),
    reason="needs synthesiser and recogniser: pip install 'muomni[speech,eval]'",
)


def sound(words: Sequence[str]) -> Samples:
    """Each word 0.2 s at a level of its own."""
    levels = [0.1 + 0.05 * WORDS.index(word) for word in words]
    return np.repeat(np.array(levels, np.float32), RATE // 5)


def words_of(text: str) -> list[str]:
    return text.lower().strip(".").split()


def hear(
    clips: Sequence[Samples], workers: int, report: Callable[[], None] = lambda: None, lm: Path | None = None
) -> list[str]:
    """A recogniser that hears what `sound` says, and nothing else."""
    heard = []
    for clip in clips:
        levels = (clip[RATE // 10 :: RATE // 5] - 0.1) / 0.05
        known = [round(float(level)) for level in levels if abs(level - round(float(level))) < 0.01 and level > -0.5]
        heard.append(" ".join(WORDS[place] for place in known if place < len(WORDS)))
        report()
    return heard


class Standin:
    """Says each text after `change` did something to its words, with `silence` seconds behind it."""

    def __init__(self, change: Callable[[list[str]], list[str]] = list, silence: float = 0.0) -> None:
        self.change, self.silence = change, silence

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        said = sound(self.change(words_of(text)))
        return np.concatenate([said, np.zeros(int(self.silence * RATE), np.float32)]), RATE


class Streaming(Standin):
    def say_chunks(self, text: str, *, voice: str | None = None) -> Iterator[tuple[Samples, int]]:
        samples, rate = self.say(text)
        yield samples[:0], rate
        yield samples[:999], rate
        yield samples[999:], rate


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> list[Sentence]:
    monkeypatch.setattr(speech_quality, "transcribe_all", hear)
    return [Sentence(text, sound(words_of(text))) for text in TEXTS]


def report_on(speaker: Standin, sentences: list[Sentence]) -> SpeechReport:
    return evaluate_speech(speaker, sentences)[0]


def test_the_references_themselves_pass(sentences: list[Sentence]) -> None:
    steps: list[str] = []
    report, spoken = evaluate_speech(Streaming(), sentences, on_update=steps.append)
    assert (report.errors.rate, report.reference_errors.rate, report.ratio) == (0, 0, 0)
    assert report.failures(SAME) == []
    assert report.first_sound is not None and 0 < report.first_sound[0] <= report.first_sound[1]
    assert steps.count("speaking") == 3 and steps.count("listening") == 6
    for one, sentence in zip(spoken, sentences, strict=True):
        np.testing.assert_array_equal(one.samples, sentence.reference)
        assert one.first is not None and one.first < one.seconds
    assert report_on(Standin(), sentences).first_sound is None
    json.dumps(report.to_dict())


@pytest.mark.parametrize(
    ("speaker", "faults"),
    [
        (Standin(lambda words: words[:-2]), {"truncated"}),
        (Standin(lambda words: words[2:]), {"truncated"}),
        (Standin(lambda words: words[:1]), {"truncated"}),
        (Standin(lambda words: words * 2), {"run-on"}),
        (Standin(silence=3.0), {"run-on"}),
        (Standin(lambda words: words[:1], silence=4.0), {"truncated", "run-on"}),
        (Standin(lambda words: ["once"] * len(words)), set()),
    ],
)
def test_each_fault_is_found(speaker: Standin, faults: set[str], sentences: list[Sentence]) -> None:
    report = report_on(speaker, sentences)
    assert report.share("truncated") == float("truncated" in faults)
    assert report.share("run_on") == float("run-on" in faults)
    failures = " ".join(report.failures(SAME))
    assert {fault for fault in ("truncated", "run-on") if fault in failures} == faults
    if speaker.silence != 3.0:
        assert "word error" in failures


def test_speech_that_is_whole_but_not_understood_is_not_truncated(
    sentences: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech_quality, "transcribe_all", lambda clips, workers, report, lm: ["cat"] * len(clips))
    report = report_on(Standin(), sentences)
    assert report.share("truncated") == 0
    assert report.to_dict()["fewer_words"] == {"model": 1.0, "reference": 1.0}


def test_failures_are_counted_by_the_number_of_words() -> None:
    def result(text: str, heard: str, reference: str, **faults: bool) -> SentenceResult:
        return SentenceResult(text, heard, reference, 1, 1, **{"truncated": False, "run_on": False, **faults})

    rows = [
        result("Seven.", "seven", "seven"),
        result("No!", "know", "no"),
        result("Oh no!", "", "oh no", truncated=True),
        result("The cat sat down.", "the bat sat", "the bat"),
        result("one " * 10, "one", "one " * 10, run_on=True),
        result("one " * 11, "one " * 11, "one " * 11),
    ]
    nothing = word_errors([])
    report = SpeechReport(rows, nothing, nothing, 0.1, None)
    assert [tuple(row.values()) for row in report.to_dict()["by_length"]] == [
        ("1", 2, 0, 1),
        ("2", 1, 1, 1),
        ("3-5", 1, 0, 0),
        ("6-10", 1, 1, 1),
        ("11+", 1, 0, 0),
    ]


def test_limits_are_limits(sentences: list[Sentence]) -> None:
    report = report_on(Streaming(lambda words: ["cat", *words[1:]]), sentences)
    assert len(report.failures(Limits(real_time=0, first_sound=0))) == 3
    assert any(failure.startswith("real-time factor") for failure in report.failures(Limits(real_time=0)))
    assert report.ratio == pytest.approx(3)  # three errors, where one is assumed of the references at least
    assert report.failures(Limits(3.001, real_time=1e9, first_sound=None)) == []


@pytest.mark.parametrize("given", [np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.zeros(9, np.float64)])
def test_what_is_no_speech_is_an_error(
    given: Samples, sentences: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = Standin()
    monkeypatch.setattr(speaker, "say", lambda text, voice=None: (given, RATE))
    with pytest.raises(MuOmniError, match="Once upon a time"):
        evaluate_speech(speaker, sentences)
    with pytest.raises(DataError, match="no sentences"):
        evaluate_speech(speaker, [])


def test_spectrograms_are_drawn(tmp_path: Path) -> None:
    pairs = [(Sentence(text, sound(words_of(text))), Spoken(sound(["cat"]), 0.1, None)) for text in TEXTS[:2]]
    plot_spectrograms(pairs, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 500


def test_wrong_manifests(tmp_path: Path) -> None:
    manifest = tmp_path / "rows.jsonl"
    for content, complaint in (("", "no recordings"), ("{}\n", '"audio".*"text"'), ("[]\n", "JSON object"),
                               ("{\n", "line 1: not valid JSON")):  # fmt: skip
        manifest.write_text(content)
        with pytest.raises(DataError, match=complaint):
            read_sentences(manifest)
    with pytest.raises(DataError, match="cannot be read"):
        read_sentences(tmp_path / "none.jsonl")


def test_without_the_recogniser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'muomni\[eval\]'"):
        check_installed()


@needs_both
def test_the_recogniser_hears_speech_and_forgets_it() -> None:
    recogniser = Recogniser()
    with Synthesiser() as synthesiser:
        samples, rate = synthesiser.say("Once upon a time there was a little girl.", "en-us:130")
    clip = resample(trim_silence(samples, rate), rate, RATE)
    first = recogniser.transcribe(clip)
    assert len(set(first.split()) & {"once", "upon", "time", "there", "was", "little", "girl"}) >= 3, first
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, RATE).astype(np.float32)
    assert len(recogniser.transcribe(noise).split()) < 3
    assert recogniser.transcribe(np.zeros(RATE, np.float32)) == recogniser.transcribe(np.zeros(0, np.float32)) == ""
    assert recogniser.transcribe(clip / np.float32(100)) == recogniser.transcribe(clip) == first
