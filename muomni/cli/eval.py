"""`muomni eval`: evaluates a trained model."""

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, print_table, writing
from muomni.errors import UserError
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.eval.speech_quality import Limits, Sentence, Speaker, SpeechReport, Spoken

# Sentences on a picture of spectrograms, and on all of them.
SPECTROGRAMS, MAX_SPECTROGRAMS = 8, 32

command = typer.Typer(
    help="Evaluate a trained model.\n\nExample: muomni eval speech runs/omni --reference held-out/manifest.jsonl",
    no_args_is_help=True,
)


@command.callback()
def _group() -> None:
    pass


@command.command()
def speech(
    run: Annotated[Path, typer.Argument(help="A run or a model's folder, or espeak:VOICE for the synthesiser itself.")],
    reference: Annotated[Path, typer.Option(help="Manifest of held-out sentences with their recordings.")],
    count: Annotated[int, typer.Option(min=1, help="The first so many sentences of the manifest.")] = 100,
    voice: Annotated[str | None, typer.Option(help="The model's voice; default: its first.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the model's speech; default: as `say` has it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the model's speech (default 0: the same each time).")] = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json, spectrograms and the model's WAVs here.")] = None,
    max_ratio: Annotated[float, typer.Option(help="Maximum WER relative to the reference.")] = 1.5,
    max_truncated: Annotated[float, typer.Option(min=0, max=1, help="Share of the sentences.")] = 0.0,
    max_run_on: Annotated[float, typer.Option(min=0, max=1, help="Share of the sentences.")] = 0.0,
    max_real_time: Annotated[float, typer.Option(help="Seconds of work for a second of speech.")] = 0.25,
    max_first_sound: Annotated[float, typer.Option(help="Milliseconds, median; for models that stream.")] = 300.0,
    lm: Annotated[
        list[Path] | None,
        typer.Option("--lm-text", metavar="TEXT", help="Similar texts, for the recogniser's language model."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Recogniser processes; default: one a core.")] = None,
    as_json: options.Json = False,
) -> None:
    """Let a model say held-out sentences and evaluate the transcripts of an independent recogniser.

    The recogniser transcribes the reference recordings too: the model's word error is relative to theirs. Truncated
    speech lacks more than 10% of words and length, run-on speech lasts 1.5 times the reference. Exit code 1 where a
    limit is exceeded. Needs the extra "eval" (PocketSphinx with its American English model, and jiwer).

    --lm-text gives the recogniser a language model of your texts, without the evaluated sentences, for model and
    reference alike. It transcribes better then, and the limit on the word error is stricter.

    Example: muomni eval speech runs/omni --reference held-out/manifest.jsonl --lm-text stories.jsonl --out evaluated
    """
    from muomni.eval.recogniser import check_installed
    from muomni.eval.speech_quality import Limits, evaluate_speech, read_sentences

    check_installed()
    limits = Limits(max_ratio, max_truncated, max_run_on, max_real_time, max_first_sound)
    sentences = read_sentences(reference, count)
    workers = workers or os.cpu_count() or 1
    with ExitStack() as stack:
        speaker = _speaker(str(run), options.given(temperature=temperature, seed=seed), stack)
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
    values = report.to_dict() | {"failures": report.failures(limits)}
    if out is not None:
        _write(report, values, sentences, spoken, out)
    if as_json:
        print_json(values, indent=2)
    else:
        _print(report, limits, values["failures"])
    if values["failures"]:
        raise typer.Exit(1)


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


def _speaker(run: str, settings: dict[str, Any], stack: ExitStack) -> "Speaker":
    """The model of a folder, or the synthesiser, which checks the evaluation itself and ends with the stack."""
    if run.startswith("espeak:"):
        if settings:
            raise UserError("--temperature and --seed are a model's; the synthesiser has none")
        from muomni.data.speech.espeak_client import Synthesiser, Voice
        from muomni.eval.speech_quality import SynthesiserSpeaker

        return SynthesiserSpeaker(stack.enter_context(Synthesiser(Voice.parse(run.removeprefix("espeak:")))))
    from muomni.api.model import MuOmni
    from muomni.eval.model_speaker import ModelSpeaker

    return ModelSpeaker(MuOmni.from_pretrained(run), **{"seed": 0, **settings})


def _write(
    report: "SpeechReport", values: dict[str, Any], sentences: "list[Sentence]", spoken: "list[Spoken]", out: Path
) -> None:
    from muomni.data.speech.synthesis import encode
    from muomni.eval.speech_quality import plot_spectrograms
    from muomni.files import write_json
    from muomni.ops.audio_frames import SAMPLE_RATE

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", values)
        for number, speech in enumerate(spoken):
            (out / f"{number:04d}.wav").write_bytes(encode(speech.samples, SAMPLE_RATE, "wav"))
        # Faulty ones first, then the others in their order.
        order = sorted(range(len(spoken)), key=lambda n: not report.sentences[n].faulty)
        for page in range(0, min(len(order), MAX_SPECTROGRAMS), SPECTROGRAMS):
            pairs = [(sentences[n], spoken[n]) for n in order[page : page + SPECTROGRAMS]]
            plot_spectrograms(pairs, out / f"spectrograms-{page // SPECTROGRAMS + 1}.png")


def _print(report: "SpeechReport", limits: "Limits", failures: list[str]) -> None:
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
