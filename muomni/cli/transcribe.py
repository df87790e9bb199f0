"""`muomni transcribe`: what is said in recordings, as text."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, writing
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.infer.transcription import Transcript

_ENDINGS = {"text": ".txt", "json": ".json"}
_STDIN = "standard input"


def command(
    run: options.Run,
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="Recordings; - reads one from standard input.")
    ],
    form: Annotated[
        Literal["text", "json", "srt"],
        typer.Option("--format", help="text, or json: an object a line. srt needs a model that gives times."),
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write NAME.txt or NAME.json here as soon as each is done, and print nothing."
        ),
    ] = None,
    hint: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The subject, or spellings, as a system message.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pieces of half a minute that are heard side by side.")] = 32,
    runner: options.Runner = None,
    device: options.Device = "auto",
) -> None:
    """Write down what is said in recordings of up to four hours each.

    WAV, FLAC, OGG and MP3 are read, and with the extra "video" what browsers and telephones record (WebM, MP4, M4A,
    AAC). Where a recording cannot be read, the others are written down and the command fails.

    Example: muomni transcribe runs/hear talk.wav

    Example: muomni transcribe runs/hear *.mp3 --format json --out texts
    """
    if form == "srt":
        raise UserError("--format srt: no model gives times of what it hears; take text or json")
    names = [name if name == "-" else options.local_path(name) for name in files]
    if names.count("-") > 1:
        raise UserError("- reads one recording from standard input: give it once")
    targets = _targets(names, out, _ENDINGS[form])
    from muomni.api.model import MuOmni
    from muomni.data.media.media_ref import MediaContent
    from muomni.infer.preprocess import checked_tokenizer
    from muomni.infer.transcription import Transcriber, transcripts

    model = MuOmni.from_pretrained(run, device=device, runner=runner)
    transcriber = Transcriber(model, checked_tokenizer(model, model.tokenizer), hint)
    sounds = [MediaContent(_STDIN, sys.stdin.buffer.read()) if name == "-" else name for name in names]
    if out is not None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    heard: list[tuple[str, Transcript]] = []
    settings: dict[str, Any] = {"progress": None, "batch_size": batch_size, "keep_going": True}
    for each in transcripts(transcriber, model.runtime, sounds, **settings):
        name = names[len(heard)]
        heard.append((_STDIN if name == "-" else name, each))
        if targets and each.error is None:
            _write(targets[name], *heard[-1])
    _tell(heard, form, printed=out is None)


def _targets(names: list[str], out: Path | None, ending: str) -> dict[str, Path]:
    """The file of each recording.

    Raises:
        UserError: two would have the same.
    """
    if out is None:
        return {}
    targets = [out / ((_STDIN if name == "-" else Path(name).stem) + ending) for name in names]
    (target, count), *_ = Counter(targets).most_common(1)
    if count > 1:
        raise UserError(f"{target} would be written for {count} recordings: write them down one after the other")
    return dict(zip(names, targets, strict=True))


def _write(target: Path, name: str, transcript: "Transcript") -> None:
    from muomni.files import atomic_file, json_line

    content = json_line(_row(name, transcript)) if target.suffix == ".json" else f"{transcript.text}\n".encode()
    with writing(target), atomic_file(target) as partial:
        partial.write_bytes(content)


def _row(name: str, transcript: "Transcript") -> dict[str, Any]:
    row = {"file": name, "text": transcript.text, "seconds": round(transcript.seconds, 3)}
    return row if transcript.error is None else row | {"error": transcript.error}


def _tell(heard: list[tuple[str, "Transcript"]], form: str, *, printed: bool) -> None:
    """Prints the transcripts, unless they are in files, and tells what could not be heard.

    Raises:
        UserError: something could not.
    """
    errors = []
    for name, each in heard:
        if each.error is not None:
            errors.append(each.error if name in each.error else f"{name}: {each.error}")
        if printed and form == "json":
            print_json(_row(name, each))
        elif printed and each.error is None:
            text = "".join(c for c in each.text if c.isprintable()) if sys.stdout.isatty() else each.text
            print(text if len(heard) == 1 else f"{name}: {text}")
    if errors and len(heard) > 1:
        for error in errors:
            print(f"muomni: {error}", file=sys.stderr)
        raise UserError(f"{len(errors)} of {len(heard)} recordings could not be written down")
    if errors:
        raise UserError(errors[0])
