"""Speech quality: does a model say what it was given, all of it, nothing more, and fast enough?

Held-out sentences come with reference recordings, of a reader or of the synthesiser that made the training speech.
One independent recogniser (`muomni.eval.recogniser`), which knows nothing of the texts, transcribes both; the model is
judged by its word error rate relative to that of the references.

Definitions. *Truncated*: fewer than 90% of the words, that is, of as many words as the recogniser transcribed of the
reference (but at most as many as the sentence has), and less than 90% of the reference's length: the recogniser alone
drops words of good speech too. *Run-on*: longer than 1.5 times the reference. Lengths are without the silence around
the speech for truncated, and with it for run-on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from muomni.data.media.audio import Samples, load_audio
from muomni.data.speech.espeak_client import Synthesiser
from muomni.data.speech.manifest import read_manifest
from muomni.data.speech.synthesis import trim_silence
from muomni.errors import DataError, MuOmniError
from muomni.eval.recogniser import transcribe_all
from muomni.eval.wer import WordErrors, spoken_words, word_errors
from muomni.ops.audio_frames import SAMPLE_RATE

TRUNCATED, RUN_ON = 0.9, 1.5
# Sentences are counted by their words: the most of each group; longer ones are a group too.
_LENGTHS = (1, 2, 5, 10)


class Speaker(Protocol):
    """What is evaluated."""

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        """The whole speech, (S,) float32, and its rate in Hz."""
        ...


@runtime_checkable
class StreamingSpeaker(Protocol):
    """A Speaker whose speech comes in chunks, so that its first sound can be timed."""

    def say_chunks(self, text: str, *, voice: str | None = None) -> Iterator[tuple[Samples, int]]:
        """The speech in chunks, (S,) float32 each, and their rate in Hz."""
        ...


class SynthesiserSpeaker:
    """The synthesiser as a Speaker, a check of the evaluation: it must pass against its own recordings."""

    def __init__(self, synthesiser: Synthesiser) -> None:
        self._synthesiser = synthesiser

    def say(self, text: str, *, voice: str | None = None) -> tuple[Samples, int]:
        """See `Speaker.say`; as in the training data without silence around the speech."""
        samples, rate = self._synthesiser.say(text, voice)
        return trim_silence(samples, rate), rate


@dataclass(frozen=True)
class Sentence:
    """A held-out sentence and its reference recording, (S,) float32 at 16 kHz."""

    text: str
    reference: Samples


@dataclass(frozen=True)
class Spoken:
    """A model's speech for a sentence.

    Attributes:
        samples: (S,) float32 at 16 kHz.
        seconds: until all of it was there.
        first: seconds until the first sound; None where the model does not stream.
    """

    samples: Samples
    seconds: float
    first: float | None


@dataclass(frozen=True)
class Limits:
    """What a model must not exceed.

    Attributes:
        ratio: word error rate relative to the references'.
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
class SentenceResult:
    """One sentence: transcripts of model and reference, their lengths in seconds, and the model's faults."""

    text: str
    transcript: str
    reference_transcript: str
    seconds: float
    reference_seconds: float
    truncated: bool
    run_on: bool

    @property
    def words(self) -> int:
        """Of the text."""
        return len(spoken_words(self.text))

    @property
    def misheard(self) -> bool:
        """Whether a word of the model was transcribed wrongly, and none of the reference."""
        text = spoken_words(self.text)
        return spoken_words(self.transcript) != text == spoken_words(self.reference_transcript)

    @property
    def faulty(self) -> bool:
        """Whether anything but single words is wrong."""
        return self.truncated or self.run_on


@dataclass(frozen=True)
class LengthResult:
    """Sentences of about one length.

    Attributes:
        words: "3-5" for example.
        sentences: how many.
        failed: those that are truncated or run on.
        misheard: those of which the recogniser got a word wrong, but not of the reference.
    """

    words: str
    sentences: int
    failed: int
    misheard: int


@dataclass(frozen=True)
class SpeechReport:
    """The result of an evaluation.

    Attributes:
        sentences: in order.
        errors, reference_errors: of the transcripts of the model's speech and of the references.
        real_time: seconds of work for a second of speech, over all sentences.
        first_sound: milliseconds until the first sound, median and 95th percentile; None where the model does not
            stream.
    """

    sentences: list[SentenceResult]
    errors: WordErrors
    reference_errors: WordErrors
    real_time: float
    first_sound: tuple[float, float] | None

    @property
    def ratio(self) -> float:
        """Word error rate of the model over that of the references, of which at least one error is assumed."""
        floor = 1 / max(1, self.reference_errors.words)
        return self.errors.rate / max(self.reference_errors.rate, floor)

    def share(self, fault: Literal["truncated", "run_on"]) -> float:
        """Share of the sentences that have the fault."""
        return sum(bool(getattr(result, fault)) for result in self.sentences) / len(self.sentences)

    def by_length(self) -> list[LengthResult]:
        """The sentences by number of words; groups without a sentence are left out."""
        results = []
        for low, high in zip((1, *(most + 1 for most in _LENGTHS)), (*_LENGTHS, None), strict=True):
            rows = [row for row in self.sentences if low <= row.words and (high is None or row.words <= high)]
            name = f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"
            failed, misheard = sum(row.faulty for row in rows), sum(row.misheard for row in rows)
            results.append(LengthResult(name, len(rows), failed, misheard))
        return [result for result in results if result.sentences]

    def _fewer(self, transcript: str) -> float:
        """Share of the sentences of which fewer than 90% of the words were transcribed, whoever lost them."""
        counts = [(len(spoken_words(getattr(row, transcript))), len(spoken_words(row.text))) for row in self.sentences]
        return sum(heard < TRUNCATED * words for heard, words in counts) / len(counts)

    def against(self, limits: Limits) -> list[tuple[str, str, str, bool]]:
        """What is limited: its name, its value and the limit as text, and whether the limit is exceeded."""
        measured = [
            ("word error over the reference's", self.ratio, limits.ratio, "{:.2f}"),
            ("share truncated", self.share("truncated"), limits.truncated, "{:.1%}"),
            ("share run-on", self.share("run_on"), limits.run_on, "{:.1%}"),
            ("real-time factor", self.real_time, limits.real_time, "{:.3f}"),
        ]
        if self.first_sound is not None and limits.first_sound is not None:
            measured.append(("first sound, ms", self.first_sound[0], limits.first_sound, "{:.0f}"))
        return [
            (name, form.format(value), form.format(limit), not value <= limit) for name, value, limit, form in measured
        ]

    def failures(self, limits: Limits) -> list[str]:
        """Each limit that is exceeded, in words; empty when the model is good enough."""
        return [f"{name} {value}, at most {limit}" for name, value, limit, exceeded in self.against(limits) if exceeded]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        first = self.first_sound
        return {
            "sentences": len(self.sentences),
            "word_error": self.errors.rate,
            "reference_word_error": self.reference_errors.rate,
            "ratio": self.ratio,
            "words": self.errors.words,
            "truncated": self.share("truncated"),
            "fewer_words": {"model": self._fewer("transcript"), "reference": self._fewer("reference_transcript")},
            "run_on": self.share("run_on"),
            "real_time_factor": self.real_time,
            "first_sound_ms": None if first is None else {"median": first[0], "p95": first[1]},
            "by_length": [asdict(result) for result in self.by_length()],
            "each": [asdict(result) for result in self.sentences],
        }


def evaluate_speech(
    speaker: Speaker,
    sentences: Sequence[Sentence],
    *,
    voice: str | None = None,
    workers: int = 1,
    lm: Path | None = None,
    on_update: Callable[[str], None] = lambda _: None,
) -> tuple[SpeechReport, list[Spoken]]:
    """Lets a model say sentences, one after the other, and transcribes and judges its speech.

    Args:
        speaker: the model.
        sentences: with their reference recordings.
        voice: of the model; None for its first.
        workers: processes of the recogniser; they start when the model has said everything, so that its times are
            undisturbed.
        lm: the recogniser's language model, for model and references alike; see `recogniser.Recogniser`.
        on_update: called with "speaking" or "listening" after each clip.

    Raises:
        DataError: there are no sentences.
        UserError: the recogniser is not installed.
        MuOmniError: the model failed to speak; whatever it raises goes through.
    """
    if not sentences:
        raise DataError("there are no sentences to evaluate")
    say_timed(speaker, sentences[0].text, voice)  # warm-up
    spoken = []
    for sentence in sentences:
        spoken.append(say_timed(speaker, sentence.text, voice))
        on_update("speaking")
    clips = [speech.samples for speech in spoken] + [sentence.reference for sentence in sentences]
    transcripts = transcribe_all(clips, workers, lambda: on_update("listening"), lm)
    of_model, of_reference = transcripts[: len(spoken)], transcripts[len(spoken) :]
    texts = [sentence.text for sentence in sentences]
    firsts = [speech.first * 1000 for speech in spoken if speech.first is not None]
    report = SpeechReport(
        [_compare(*row) for row in zip(sentences, spoken, of_model, of_reference, strict=True)],
        word_errors(zip(texts, of_model, strict=True)),
        word_errors(zip(texts, of_reference, strict=True)),
        sum(speech.seconds for speech in spoken) / sum(len(speech.samples) / SAMPLE_RATE for speech in spoken),
        (float(np.median(firsts)), float(np.percentile(firsts, 95))) if firsts else None,
    )
    return report, spoken


def say_timed(speaker: Speaker, text: str, voice: str | None) -> Spoken:
    """Says a text and takes the time.

    Raises:
        MuOmniError: the speaker returned no speech: nothing, or not float32 of one channel.
    """
    began = time.perf_counter()
    first = None
    if isinstance(speaker, StreamingSpeaker):
        chunks, rate = [], SAMPLE_RATE
        for chunk, rate in speaker.say_chunks(text, voice=voice):  # noqa: B007 (all chunks have one rate)
            if first is None and len(chunk):
                first = time.perf_counter() - began
            chunks.append(np.asarray(chunk))
        samples = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    else:
        speech, rate = speaker.say(text, voice=voice)
        samples = np.asarray(speech)
    seconds = time.perf_counter() - began
    if samples.ndim != 1 or samples.dtype != np.float32 or not len(samples):
        raise MuOmniError(
            f"the model's speech for {text[:80]!r} must be (S,) float32 with at least one sample, not "
            f"{samples.shape} {samples.dtype}"
        )
    return Spoken(load_audio((samples, rate), max_seconds=float("inf")), seconds, first)


def _compare(sentence: Sentence, spoken: Spoken, transcript: str, reference_transcript: str) -> SentenceResult:
    length, reference = len(spoken.samples), len(sentence.reference)
    trimmed, trimmed_reference = (
        len(trim_silence(samples, SAMPLE_RATE, 0)) for samples in (spoken.samples, sentence.reference)
    )
    expected = min(len(spoken_words(reference_transcript)), len(spoken_words(sentence.text)))
    few_words = len(spoken_words(transcript)) < TRUNCATED * expected
    return SentenceResult(
        sentence.text,
        transcript,
        reference_transcript,
        length / SAMPLE_RATE,
        reference / SAMPLE_RATE,
        truncated=few_words and trimmed < TRUNCATED * trimmed_reference,
        run_on=length > RUN_ON * reference,
    )


def read_sentences(manifest: Path, count: int | None = None) -> list[Sentence]:
    """The first `count` sentences (None: all) of a manifest with `text` and `audio`, with their recordings.

    Raises:
        DataError: the manifest is missing, or a row of it is no such pair.
        MediaError: a recording does not load.
    """
    sentences: list[Sentence] = []
    for ref, row in islice(read_manifest(manifest, "text"), count):
        if not spoken_words(row["text"]):
            raise DataError(f"{manifest}: {ref}: its text {row['text'][:60]!r} has no word")
        sentences.append(Sentence(row["text"], load_audio(ref)))
    if not sentences:
        raise DataError(f"{manifest}: holds no recordings")
    return sentences


def plot_spectrograms(pairs: Sequence[tuple[Sentence, Spoken]], target: Path) -> None:
    """A PNG: each sentence a row, the reference on the left and the model's speech on the right, to one time scale."""
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from muomni.ops.log_mel import log_mel

    figure = Figure(figsize=(12, 2.2 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    for row, (sentence, spoken) in zip(grid, pairs, strict=True):
        sounds: Mapping[str, Samples] = {"reference": sentence.reference, "model": spoken.samples}
        longest = max(map(len, sounds.values())) / SAMPLE_RATE
        for axes, (name, samples) in zip(row, sounds.items(), strict=True):
            axes.imshow(
                log_mel(torch.from_numpy(samples)).numpy().T,
                origin="lower",
                aspect="auto",
                extent=(0, len(samples) / SAMPLE_RATE, 0, 80),
            )
            axes.set_xlim(0, longest)
            axes.set_title(f"{name}: {sentence.text[:70]}", fontsize=7, parse_math=False)
            axes.tick_params(labelsize=6)
        row[0].set_ylabel("mel band", fontsize=6)
        row[1].set_yticks([])
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(target))
