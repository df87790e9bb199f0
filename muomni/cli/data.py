"""`muomni data`: looking at data before a run does, and making speech."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, print_table, writing
from muomni.errors import UserError
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.config.model import PresetName
    from muomni.data.validation.check import Findings

command = typer.Typer(
    help="Data for training: read everything once and say what is wrong; make speech from texts.\n\n"
    "Example: muomni data check train.jsonl --out report",
    no_args_is_help=True,
)


@command.callback()
def _group() -> None:
    pass


@command.command()
def check(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="JSON lines, also .gz, or Parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Write problems.json, histogram.png and contact_sheet.png to this folder.")
    ] = None,
    as_json: options.Json = False,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Sounds beyond this are too long.")] = 300.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    preset: Annotated[str, typer.Option(help="Count the tokens of this preset's encoders.")] = "tiny",
) -> None:
    """Read every picture and sound that manifests name, and say what is wrong.

    Found are: rows that cannot be used, missing, broken and too long media (exit code 1), and silent,
    blank, unpaired and duplicate media, transcripts that cannot be those of their sounds, and files of an archive that
    no row names, which are worth a look.

    Example: muomni data check train.jsonl val.jsonl --out report
    """
    from muomni.data.validation.check import check_manifests

    with progress_bar("reading rows") as bar:
        findings = check_manifests(
            manifests,
            max_seconds=max_seconds,
            workers=workers,
            preset=cast("PresetName", preset),  # an unknown one is told by the check
            report=bar.advance,
        )
    if out is not None:
        _write(findings, out)
    if as_json:
        print_json(findings.to_dict(), indent=2)
    else:
        _print(findings)
    if findings.failed:
        raise typer.Exit(1)


@command.command()
def speech(
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Text, JSON lines or Parquet; also folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the sounds and their manifest.")],
    count: Annotated[int | None, typer.Option(min=1, help="Sentences to draw; default: all.")] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(help="NAME[+VARIANT][:SPEED[:PITCH]] of eSpeak NG, as en-us+f3:150; several: drawn evenly."),
    ] = None,
    speed_spread: Annotated[float, typer.Option(min=0, max=0.5, help="Speeds vary by this share.")] = 0.0,
    pitch_spread: Annotated[int, typer.Option(min=0, max=50, help="Pitches (0 to 99) vary by this.")] = 0,
    min_words: Annotated[int, typer.Option(min=1, help="Shortest sentence.")] = 1,
    max_words: Annotated[int, typer.Option(min=1, help="Longest sentence.")] = 15,
    short_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.5,
            help="Sentences of one or two words, at least; if the texts have fewer: words of them, digits, "
            "interjections. Default 0.1, or 0 with --min-words above 2.",
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Texts or manifests whose sentences must not occur, a held-out set.")
    ] = None,
    rate: Annotated[int, typer.Option(min=8000, max=48000, help="Sample rate in Hz.")] = 16_000,
    form: Annotated[Literal["flac", "wav"], typer.Option("--format", help="Of 16 bit.")] = "flac",
    seed: Annotated[int, typer.Option(help="Of the draw of sentences, voices, speeds and pitches.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make pairs of text and speech with a synthesiser, in any number.

    Sentences are cut from the texts, their numbers put into words, and each wording is taken once. A run that was
    stopped goes on with the same command. Needs the extra "speech" (eSpeak NG, under the GPL; it runs as a program
    of its own).

    Example: muomni data speech stories.jsonl --out speech --count 4000
    """
    from muomni.data.speech.espeak_client import Voice, installed_library
    from muomni.data.speech.normalizer import missing_numbers
    from muomni.data.speech.sentences import SentenceLimits, draw_sentences, sentences_of, with_short, wording
    from muomni.data.speech.synthesis import SpeechSettings, make_speech

    if short_share and min_words > 2:
        raise UserError(f"--short-share {short_share:g}: needs --min-words of at most 2, not {min_words}")
    share = (0.1 if min_words <= 2 else 0.0) if short_share is None else short_share
    voices = tuple(Voice.parse(text) for text in voice or ()) or SpeechSettings().voices
    languages = {chosen.language for chosen in voices}
    if len(languages) > 1:
        raise UserError(f"--voice: all voices must be of one language, not {', '.join(sorted(languages))}")
    settings = SpeechSettings(voices, speed_spread, pitch_spread, rate, form, seed)
    installed_library()
    language = languages.pop()
    excluded = frozenset(wording(sentence) for sentence in sentences_of(exclude or (), language))
    limits = SentenceLimits(min_words, max_words)
    sentences = draw_sentences(sentences_of(texts, language), count, seed=seed, limits=limits, excluded=excluded)
    if count is not None and len(sentences) < count:
        more = missing_numbers(language)
        raise UserError(
            f"--count {count}: the texts hold only {len(sentences)} different sentences of {min_words} to {max_words} "
            f"words; give more text, other limits or a smaller count{f' ({more})' if more else ''}"
        )
    sentences = with_short(sentences, share, language, grow=count is None, seed=seed, limits=limits, excluded=excluded)
    with progress_bar("speaking", len(sentences)) as bar:
        made = make_speech(sentences, out, settings, workers=workers or os.cpu_count() or 1, report=bar.advance)
    summary = {"manifest": str(made.manifest), "clips": made.clips, "hours": made.seconds / 3600, "bytes": made.size}
    if as_json:
        print_json(summary)
    else:
        kept = f"; {made.found} of {made.shards} shards were there" if made.found else ""
        print(f"{made.clips:,} clips, {made.seconds / 3600:.2f} h, {made.size / 1e6:,.1f} MB{kept}: {made.manifest}")


@command.command()
def synth(
    out: Annotated[Path, typer.Option(help="A new folder for items.jsonl and media.zip.")],
    count: Annotated[int, typer.Option(min=1, help="How many items.")] = 1000,
    skill: Annotated[
        list[str] | None,
        typer.Option(help="scene, reading, facts, persona or spoken; several: each as often. Default: the first four."),
    ] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Only what never occurs in training.")] = False,
    seed: Annotated[int, typer.Option(help="Another one gives other items.")] = 0,
) -> None:
    """Make pictures, sounds and questions with their answers, in any number, from nothing.

    The same items as the source {"synthetic": "world"} of a recipe makes while it trains, here as files to be looked
    at. "spoken" needs the extra "speech".

    Example: muomni data synth --out world --count 200 --skill scene --skill reading
    """
    from muomni.config import SyntheticSpec
    from muomni.config.base import parse
    from muomni.data.synthetic.writer import write_items

    part = "held_out" if held_out else "train"
    given = {"synthetic": "world", "count": count, "seed": seed, "part": part, **({"skills": skill} if skill else {})}
    spec = parse(SyntheticSpec, given, "data synth")
    with progress_bar("making items", count) as bar:
        print(f"{count:,} items: {write_items(spec, out, bar.advance)}")


@command.command()
def recordings(
    folder: Annotated[Path, typer.Argument(help="Sounds with metadata.csv (NAME|TEXT) or with .txt files beside.")],
    out: Annotated[Path, typer.Option(help="The manifest to write, a .jsonl file.")],
    speaker: Annotated[str | None, typer.Option(help="Who speaks; default: the folder's name.")] = None,
    language: Annotated[str, typer.Option(help="Of the texts: en, de, fr, es; others as num2words knows them.")] = "en",
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longer recordings are left out.")] = 30.0,
    as_json: options.Json = False,
) -> None:
    """Make a manifest of your own recordings: a folder of sounds with their texts.

    Recordings that cannot be used are listed with the reason; the exit code is 1 only where none is left.

    Example: muomni data recordings my-voice --out my-voice.jsonl
    """
    from muomni.data.speech.recordings import write_recordings

    with progress_bar("reading recordings") as bar:
        result = write_recordings(
            folder,
            out,
            speaker=speaker,
            language=language,
            max_seconds=max_seconds,
            report=bar.advance,
        )
    if as_json:
        left_out = [{"name": name, "reason": reason} for name, reason in result.left_out]
        print_json({"clips": result.clips, "seconds": result.seconds, "left_out": left_out})
        return
    for name, reason in result.left_out:
        print(f"left out: {name}: {reason}")
    print(f"{result.clips:,} recordings, {result.seconds / 60:,.1f} min; {len(result.left_out)} left out: {out}")


def _write(findings: "Findings", out: Path) -> None:
    from muomni.data.validation.plots import plot_contact_sheet, plot_histograms
    from muomni.files import write_json

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "problems.json", findings.to_dict())
        plot_histograms(findings, out / "histogram.png")
        plot_contact_sheet(findings, out / "contact_sheet.png")


def _print(findings: "Findings") -> None:
    from muomni.data.validation.check import KINDS

    minutes = sum(findings.seconds) / 60
    print(
        f"{findings.rows:,} rows, {findings.pictures:,} pictures, {findings.sounds:,} sounds ({minutes:,.1f} min), "
        f"{sum(findings.tokens):,} media tokens"
    )
    if not findings.problems:
        print("nothing is wrong")
        return
    by_kind = {kind: [problem for problem in findings.problems if problem.kind == kind] for kind in KINDS}
    cells = [
        (kind, f"{len(problems):,}", f"{problems[0].where}: {problems[0].reason}")
        for kind, problems in by_kind.items()
        if problems
    ]
    print_table(("problem", "count", "first"), cells, left=("problem", "first"))
