"""`muomni eval`: evaluates a trained model."""

import importlib.util
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, print_table, writing
from muomni.errors import UserError
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.config.recipe_data import Skill
    from muomni.eval.speech_quality import Limits, Sentence, Speaker, SpeechReport, Spoken
    from muomni.eval.suite import Area, Evaluation, TestSet

# Sentences on a picture of spectrograms, and on all of them.
SPECTROGRAMS, MAX_SPECTROGRAMS = 8, 32
_SPEECH = "Speech"


def command(
    run: Annotated[
        str, typer.Argument(help="A run or a model's folder, or espeak:VOICE to let the synthesiser itself speak.")
    ],
    what: Annotated[
        Literal["text", "see", "hear", "speak", "all"], typer.Argument(help="What is judged; all: what the model can.")
    ] = "all",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Test data, JSON lines of the kinds below; else the small world's held-out part."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="The first so many rows of each file.")] = 500,
    out: Annotated[
        Path | None, typer.Option(help="Write report.json, report.html and the model's speech here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts side by side.")] = 32,
    int8: Annotated[bool, typer.Option("--int8", help="Judge the model with int8 weights.")] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    voice: Annotated[
        str | None, typer.Option(rich_help_panel=_SPEECH, help="The model's voice; default: its first.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(rich_help_panel=_SPEECH, help="Of the model's speech; default: as `say` has it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=_SPEECH, help="Of the model's speech (default 0: the same each time).")
    ] = None,
    max_ratio: Annotated[
        float, typer.Option(rich_help_panel=_SPEECH, help="Maximum word error relative to the recordings'.")
    ] = 1.5,
    max_truncated: Annotated[
        float, typer.Option(min=0, max=1, rich_help_panel=_SPEECH, help="Share of the sentences.")
    ] = 0.0,
    max_run_on: Annotated[
        float, typer.Option(min=0, max=1, rich_help_panel=_SPEECH, help="Share of the sentences.")
    ] = 0.0,
    max_real_time: Annotated[
        float, typer.Option(rich_help_panel=_SPEECH, help="Seconds of work for a second of speech.")
    ] = 0.25,
    max_first_sound: Annotated[
        float, typer.Option(rich_help_panel=_SPEECH, help="Milliseconds, median; for models that stream.")
    ] = 300.0,
    lm: Annotated[
        list[Path] | None,
        typer.Option(
            "--lm-text",
            metavar="TEXT",
            rich_help_panel=_SPEECH,
            help="Similar texts, for the recogniser's language model.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_SPEECH, help="Recogniser processes; default: one a core.")
    ] = None,
) -> None:
    """Evaluate a trained model: what it reads, sees, hears and says.

    Rows of the data say by their keys what they are: "good" and "bad" are sentences of which the first should be the
    likelier one; "context", "choices" and "answer" a story and its endings; "text" alone is text to be predicted;
    "audio" and "text" a recording, to be written down, and beside which the model's own speech is judged; "messages"
    (the last one is the answer), or "image" with "choices" or a "caption", are questions, answered in writing.

    For speech an independent recogniser transcribes the model and the recordings of the same sentences; truncated
    speech lacks more than 10% of words and length, run-on speech lasts 1.5 times the recording. Exit code 1 where a
    limit is exceeded. Needs the extra "eval".

    Example: muomni eval runs/omni --data val/digits.jsonl --data val/speech.jsonl --out evaluated
    """
    from muomni.eval.report import as_json as values_of
    from muomni.eval.suite import Evaluation, read_set

    sets = [read_set(path, count) for path in data or ()]
    recorded = any(one.kind == "recordings" for one in sets)
    if recorded or what == "speak":
        from muomni.eval.recogniser import check_installed

        check_installed()
    settings = options.given(temperature=temperature, seed=seed)
    limits = (max_ratio, max_truncated, max_run_on, max_real_time, max_first_sound)
    evaluation, speech = Evaluation(), None
    with ExitStack() as stack:
        model = None if run.startswith("espeak:") else _model(run, device, int8)
        if model is not None and what != "speak":
            evaluation = _written(model, what, sets, count, batch_size)
        if what == "speak" or (what == "all" and recorded and (model is None or model.config.talker is not None)):
            speaker = _speaker(run, model, settings, stack)
            speech = _spoken(speaker, sets, count, limits, lm, voice, workers or os.cpu_count() or 1, stack)
    failures = [] if speech is None else speech.failures
    values = {"run": run, **values_of(evaluation, None if speech is None else speech.report), "failures": failures}
    if out is not None:
        _write(evaluation, speech, values, out)
    if as_json:
        print_json(values, indent=2)
    else:
        _print(evaluation, speech)
    if failures:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Speech:
    """The model's own speech, judged."""

    report: "SpeechReport"
    limits: "Limits"
    sentences: "list[Sentence]"
    spoken: "list[Spoken]"

    @property
    def failures(self) -> list[str]:
        return self.report.failures(self.limits)


def _model(run: str, device: str, int8: bool) -> "MuOmni":
    from muomni.api.model import MuOmni

    model = MuOmni.from_pretrained(run, device=device, int8=int8)
    if model.tokenizer is None:
        raise UserError(f"{run}: the model has no tokenizer, so it can neither read nor write")
    return model


def _written(model: "MuOmni", what: str, sets: "list[TestSet]", count: int, batch_size: int) -> "Evaluation":
    """What is judged by the model's replies and predictions.

    Raises:
        UserError: it cannot do what is asked, or no data is for it.
    """
    from muomni.eval.suite import evaluate_sets, world_set

    able: dict[Area, bool] = {
        "text": True,
        "see": model.config.vision is not None,
        "hear": model.config.audio is not None,
    }
    if what != "all" and not able[cast("Area", what)]:
        raise UserError(f"{what}: the model has no encoder for it")
    areas = [area for area, can in able.items() if can and what in (area, "all")]
    if not sets:
        skills: dict[Area, tuple[Skill, ...]] = {
            "text": ("facts", "persona"), "see": ("scene", "reading"), "hear": ("spoken",)
        }  # fmt: skip
        if "hear" in areas and what == "all" and importlib.util.find_spec("espeakng_loader") is None:
            areas.remove("hear")
        sets = [world_set(skills[area], count) for area in areas]
    rows = sum(len(one.rows) * len(one.areas() & set(areas)) for one in sets)
    if not rows:
        raise UserError(f"none of the data is for {what}; see `muomni eval --help` for what rows hold")
    with progress_bar("evaluating", rows) as bar:
        return evaluate_sets(model, sets, areas, batch_size=batch_size, report=bar.advance)


def _spoken(
    speaker: "Speaker",
    sets: "list[TestSet]",
    count: int,
    limits: tuple[float, ...],
    lm: list[Path] | None,
    voice: str | None,
    workers: int,
    stack: ExitStack,
) -> _Speech:
    """The sentences of recordings, spoken and judged.

    Raises:
        UserError: there are no recordings.
    """
    from muomni.eval.speech_quality import Limits, evaluate_speech
    from muomni.eval.suite import sentences_of

    sentences = sentences_of(sets, count)
    if not sentences:
        raise UserError('speak: needs --data with "audio" and "text": sentences and recordings of them')
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="muomni-")))
    language_model = _language_model(lm, sentences, folder) if lm else None
    speaking = stack.enter_context(progress_bar("speaking", len(sentences)))
    # The recogniser listens to the model's speech and to the references.
    bars = {"speaking": speaking, "listening": speaking.add("listening", 2 * len(sentences))}
    report, spoken = evaluate_speech(
        speaker,
        sentences,
        voice=voice,
        workers=workers,
        lm=language_model,
        on_update=lambda name: bars[name].advance(),
    )
    return _Speech(report, Limits(*limits), sentences, spoken)


def _language_model(texts: list[Path], sentences: "list[Sentence]", folder: Path) -> Path:
    """The language model of texts as a file, without the evaluated sentences.

    Raises:
        DataError: a file is missing or unreadable, or nothing is left.
    """
    from muomni.data.speech.sentences import sentences_of, wording
    from muomni.eval.ngram_lm import write_lm
    from muomni.eval.wer import spoken_words

    held_out = {wording(sentence.text) for sentence in sentences}
    path = folder / "texts.arpa"
    write_lm((spoken_words(text) for text in sentences_of(texts) if wording(text) not in held_out), path)
    return path


def _speaker(run: str, model: "MuOmni | None", settings: dict[str, Any], stack: ExitStack) -> "Speaker":
    """The model, or the synthesiser, which checks the evaluation itself and ends with the stack."""
    if model is not None:
        from muomni.eval.model_speaker import ModelSpeaker

        return ModelSpeaker(model, **{"seed": 0, **settings})
    if settings:
        raise UserError("--temperature and --seed are a model's; the synthesiser has none")
    from muomni.data.speech.espeak_client import Synthesiser, Voice
    from muomni.eval.speech_quality import SynthesiserSpeaker

    return SynthesiserSpeaker(stack.enter_context(Synthesiser(Voice.parse(run.removeprefix("espeak:")))))


def _write(evaluation: "Evaluation", speech: _Speech | None, values: dict[str, Any], out: Path) -> None:
    from muomni.eval.report import as_html
    from muomni.files import write_json

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", values)
        said = () if speech is None else zip(speech.sentences, speech.spoken, strict=True)
        pairs = [(sentence.text, sound) for sentence, sound in said]
        page = as_html(evaluation, pairs, name=values["run"], command=shlex.join(["muomni", *sys.argv[1:]]))
        (out / "report.html").write_text(page, encoding="utf-8")
        if speech is not None:
            _write_speech(speech, out)


def _write_speech(speech: _Speech, out: Path) -> None:
    from muomni.data.speech.synthesis import encode
    from muomni.eval.speech_quality import plot_spectrograms
    from muomni.ops.audio_frames import SAMPLE_RATE

    for number, sound in enumerate(speech.spoken):
        (out / f"{number:04d}.wav").write_bytes(encode(sound.samples, SAMPLE_RATE, "wav"))
    # Faulty ones first, then the others in their order.
    order = sorted(range(len(speech.spoken)), key=lambda n: not speech.report.sentences[n].faulty)
    for page in range(0, min(len(order), MAX_SPECTROGRAMS), SPECTROGRAMS):
        pairs = [(speech.sentences[n], speech.spoken[n]) for n in order[page : page + SPECTROGRAMS]]
        plot_spectrograms(pairs, out / f"spectrograms-{page // SPECTROGRAMS + 1}.png")


def _print(evaluation: "Evaluation", speech: _Speech | None) -> None:
    if evaluation.figures:
        rows = [
            (figure.area, figure.set_name, figure.name, figure.text, f"{figure.count:,}", figure.beside)
            for figure in evaluation.figures
        ]
        headings = ("area", "set", "measured", "value (95% interval)", "of", "beside")
        print_table(headings, rows, left=("area", "set", "measured", "beside"))
    if speech is not None:
        _print_speech(speech.report, speech.limits, speech.failures)


def _print_speech(report: "SpeechReport", limits: "Limits", failures: list[str]) -> None:
    errors = f"{report.errors.rate:.1%}, of the reference {report.reference_errors.rate:.1%}"
    print(f"{len(report.sentences):,} sentences, {report.errors.words:,} words; word error of the model {errors}")
    print_table(("", "measured", "at most"), [row[:3] for row in report.against(limits)], left=("",))
    lengths = []
    for row in report.by_length():
        shares = (f"{count / row.sentences:.1%} ({count})" for count in (row.failed, row.misheard))
        lengths.append((row.words, f"{row.sentences:,}", *shares))
    print_table(("words", "sentences", "failed", "misheard"), lengths, left=("words",))
    for result in [result for result in report.sentences if result.faulty][:10]:
        fault = "truncated" if result.truncated else "run-on"
        print(f"{fault}: {result.text} (transcript: {result.transcript})")
    for failure in failures:
        print(f"failed: {failure}")
