"""Judging speech: does a model say what it was given, all of it, nothing more, and fast enough?

The held-out sentences come with original recordings, of a reader or of the synthesiser that made the training
speech. Model and originals are written down by the same independent recogniser (`muomni.eval.recogniser`), which
knows nothing of what was said; the model is judged by its word error beside that of the originals.

Definitions. *Truncated*: fewer than 90% of the words, that is, of as many words as the recogniser wrote down of the
original (but at most as many as the sentence has), and less than 90% of the original's length: the recogniser alone
drops words of good speech too. *Run-on*: longer than 1.5 times the original. Both lengths are those of the speech
without silence around it for truncated, and of everything for run-on.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from muomni.data.media.audio import SAMPLE_RATE, Samples, load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.speech.espeak_client import Synthesiser
from muomni.data.speech.synthesis import trim_silence
from muomni.errors import DataError, MuOmniError
from muomni.eval.recogniser import transcribe_all
from muomni.eval.wer import WordErrors, spoken_words, word_errors

TRUNCATED, RUN_ON = 0.9, 1.5


class Speaker(Protocol):
    """What is judged."""

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        """The whole speech, (S,) float32, and its rate in Hz."""
        ...


@runtime_checkable
class StreamingSpeaker(Protocol):
    """A Speaker whose speech comes in pieces, so that its first sound can be timed."""

    def say_pieces(self, text: str, *, voice: str | None = None) -> Iterator[tuple[Samples, int]]:
        """The speech in pieces, (S,) float32 each, and their rate in Hz."""
        ...


class SynthesiserSpeaker:
    """The synthesiser as a Speaker, to try the gate itself: it must pass against its own recordings."""

    def __init__(self, synthesiser: Synthesiser) -> None:
        self._synthesiser = synthesiser

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        """See `Speaker.say`; as in the training data without silence around the speech."""
        samples, rate = self._synthesiser.say(text, voice)
        return trim_silence(samples, rate), rate


@dataclass(frozen=True)
class Sentence:
    """A held-out sentence and the original recording of it, (S,) float32 at 16 kHz."""

    text: str
    original: Samples


@dataclass(frozen=True)
class Spoken:
    """What a model made of a sentence: (S,) float32 at 16 kHz, seconds until all and until the first sound were there.

    `first` is None where the model does not stream.
    """

    samples: Samples
    seconds: float
    first: float | None


@dataclass(frozen=True)
class Limits:
    """The gate.

    Attributes:
        ratio: of the model's word error to the originals'.
        truncated, run_on: shares of the sentences.
        real_time: seconds of work for a second of speech.
        first_sound: milliseconds, the median; None where it is not judged.
    """

    ratio: float = 1.5
    truncated: float = 0.0
    run_on: float = 0.0
    real_time: float = 0.25
    first_sound: float | None = 300.0


@dataclass(frozen=True)
class Judged:
    """One sentence: what was heard of model and original, both lengths in seconds, and what is wrong."""

    text: str
    heard: str
    heard_original: str
    seconds: float
    original_seconds: float
    truncated: bool
    run_on: bool

    @property
    def faulty(self) -> bool:
        """Whether anything but single words is wrong."""
        return self.truncated or self.run_on


@dataclass(frozen=True)
class SpeechReport:
    """Attributes:
    sentences: in order.
    errors, original_errors: the recogniser's on the model's speech and on the originals.
    real_time: seconds of work for a second of speech, over all sentences.
    first_sound: milliseconds until the first sound, median and the slowest of 20 (95th percentile); None where the
        model does not stream.
    """

    sentences: list[Judged]
    errors: WordErrors
    original_errors: WordErrors
    real_time: float
    first_sound: tuple[float, float] | None

    @property
    def ratio(self) -> float:
        """Word error of the model over that of the originals, of which at least one error is assumed."""
        floor = 1 / max(1, self.original_errors.words)
        return self.errors.rate / max(self.original_errors.rate, floor)

    def share(self, fault: Literal["truncated", "run_on"]) -> float:
        """Share of the sentences that have the fault."""
        return sum(bool(getattr(judged, fault)) for judged in self.sentences) / len(self.sentences)

    def _fewer(self, heard: str) -> float:
        """Share of the sentences of which fewer than 90% of the words were heard, whoever lost them."""
        counts = [(len(spoken_words(getattr(one, heard))), len(spoken_words(one.text))) for one in self.sentences]
        return sum(count < TRUNCATED * said for count, said in counts) / len(counts)

    def failures(self, limits: Limits) -> list[str]:
        """Each limit that is passed, in words; empty when the model is good enough."""
        measured = [
            ("word error over the originals'", self.ratio, limits.ratio, "{:.2f}"),
            ("share truncated", self.share("truncated"), limits.truncated, "{:.1%}"),
            ("share run-on", self.share("run_on"), limits.run_on, "{:.1%}"),
            ("real-time factor", self.real_time, limits.real_time, "{:.3f}"),
        ]
        if self.first_sound is not None and limits.first_sound is not None:
            measured.append(("first sound, ms", self.first_sound[0], limits.first_sound, "{:.0f}"))
        return [
            f"{name} {form.format(value)}, at most {form.format(limit)}"
            for name, value, limit, form in measured
            if not value <= limit
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        first = self.first_sound
        return {
            "sentences": len(self.sentences),
            "word_error": self.errors.rate,
            "original_word_error": self.original_errors.rate,
            "ratio": self.ratio,
            "words": self.errors.words,
            "truncated": self.share("truncated"),
            "fewer_words": {"model": self._fewer("heard"), "originals": self._fewer("heard_original")},
            "run_on": self.share("run_on"),
            "real_time_factor": self.real_time,
            "first_sound_ms": None if first is None else {"median": first[0], "p95": first[1]},
            "each": [vars(judged) for judged in self.sentences],
        }


def judge(
    speaker: Speaker,
    sentences: Sequence[Sentence],
    *,
    voice: str | None = None,
    workers: int = 1,
    heard_originals: Sequence[str] | None = None,
    lm: Path | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> tuple[SpeechReport, list[Spoken]]:
    """Lets a model say sentences, one after the other, and judges what is heard.

    Args:
        workers: processes of the recogniser; they start when the model has said everything, so that its times are
            undisturbed.
        heard_originals: what the recogniser wrote down of the originals, where that is known.
        lm: the recogniser's language model, for model and originals alike; see `recogniser.Recogniser`.
        report: called with "speaking" or "listening" after each clip.

    Raises:
        DataError: there are no sentences.
        UserError: the recogniser is not installed.
        MuOmniError: the model failed to speak; whatever it raises goes through.
    """
    if not sentences:
        raise DataError("there are no sentences to judge by")
    say_timed(speaker, sentences[0].text, voice)  # warm
    spoken = []
    for sentence in sentences:
        spoken.append(say_timed(speaker, sentence.text, voice))
        report("speaking")
    clips = [one.samples for one in spoken]
    clips += [] if heard_originals is not None else [sentence.original for sentence in sentences]
    heard = transcribe_all(clips, workers, lambda: report("listening"), lm)
    heard_first = list(heard_originals) if heard_originals is not None else heard[len(spoken) :]
    judged = [_judge_one(*each) for each in zip(sentences, spoken, heard, heard_first, strict=False)]
    texts = [sentence.text for sentence in sentences]
    firsts = [one.first * 1000 for one in spoken if one.first is not None]
    result = SpeechReport(
        judged,
        word_errors(zip(texts, heard, strict=False)),
        word_errors(zip(texts, heard_first, strict=True)),
        sum(one.seconds for one in spoken) / sum(len(one.samples) / SAMPLE_RATE for one in spoken),
        (float(np.median(firsts)), float(np.percentile(firsts, 95))) if firsts else None,
    )
    return result, spoken


def say_timed(speaker: Speaker, text: str, voice: str | None) -> Spoken:
    """Says a text and takes the time.

    Raises:
        MuOmniError: what comes is no speech: nothing, or not float32 of one channel.
    """
    began = time.perf_counter()
    first = None
    if isinstance(speaker, StreamingSpeaker):
        pieces, rate = [], SAMPLE_RATE
        for piece, rate in speaker.say_pieces(text, voice=voice):  # noqa: B007 (the last one's rate is all pieces')
            if first is None and len(piece):
                first = time.perf_counter() - began
            pieces.append(np.asarray(piece))
        samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    else:
        given, rate = speaker.say(text, voice=voice)
        samples = np.asarray(given)
    seconds = time.perf_counter() - began
    if samples.ndim != 1 or samples.dtype != np.float32 or not len(samples):
        raise MuOmniError(
            f"the model's speech for {text[:80]!r} must be (S,) float32 with at least one sample, not "
            f"{samples.shape} {samples.dtype}"
        )
    return Spoken(load_audio((samples, rate), max_seconds=float("inf")), seconds, first)


def _judge_one(sentence: Sentence, spoken: Spoken, heard: str, heard_original: str) -> Judged:
    length, original = len(spoken.samples), len(sentence.original)
    speech, original_speech = (
        len(trim_silence(samples, SAMPLE_RATE, 0)) for samples in (spoken.samples, sentence.original)
    )
    expected = min(len(spoken_words(heard_original)), len(spoken_words(sentence.text)))
    few = len(spoken_words(heard)) < TRUNCATED * expected
    return Judged(
        sentence.text,
        heard,
        heard_original,
        length / SAMPLE_RATE,
        original / SAMPLE_RATE,
        truncated=few and speech < TRUNCATED * original_speech,
        run_on=length > RUN_ON * original,
    )


def read_sentences(manifest: Path, count: int | None = None) -> list[Sentence]:
    """The first `count` sentences (None: all) of a manifest with `text` and `audio`, with their recordings.

    Raises:
        DataError: the manifest is missing, or a row of it is no such pair.
        MediaError: a recording does not load.
    """
    sentences: list[Sentence] = []
    for where, row in _rows(manifest):
        if count is not None and len(sentences) >= count:
            break
        text, audio, archive = (row.get(key) for key in ("text", "audio", "archive"))
        if not isinstance(text, str) or not isinstance(audio, str) or not spoken_words(text):
            raise DataError(f"{where}: needs text and audio, as `muomni data speech` and `recordings` write them")
        path = manifest.parent / (archive or audio)
        sentences.append(Sentence(text, load_audio(MediaRef("audio", str(path), audio if archive else None))))
    if not sentences:
        raise DataError(f"{manifest}: holds no recordings")
    return sentences


def _rows(manifest: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = manifest.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{manifest}: line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: must be a JSON object")
            yield where, row


def plot_spectrograms(pairs: Sequence[tuple[Sentence, Spoken]], target: Path) -> None:
    """A PNG: each sentence a row, the original on the left and the model's speech on the right, to one time scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from muomni.data.media.audio import to_mel

    figure = Figure(figsize=(12, 2.2 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    for row, (sentence, spoken) in zip(grid, pairs, strict=True):
        sounds: Mapping[str, Samples] = {"original": sentence.original, "model": spoken.samples}
        longest = max(map(len, sounds.values())) / SAMPLE_RATE
        for axes, (name, samples) in zip(row, sounds.items(), strict=True):
            axes.imshow(to_mel(samples).T, origin="lower", aspect="auto", extent=(0, len(samples) / SAMPLE_RATE, 0, 80))
            axes.set_xlim(0, longest)
            axes.set_title(f"{name}: {sentence.text[:70]}", fontsize=7, parse_math=False)
            axes.tick_params(labelsize=6)
        row[0].set_ylabel("mel band", fontsize=6)
        row[1].set_yticks([])
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(target))
