"""`muomni say`: a model speaks a text."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, writing
from muomni.errors import UserError
from muomni.files import text_lines

if TYPE_CHECKING:
    from muomni.api.model import MuOmni

MANIFEST = "manifest.jsonl"


def command(
    run: options.Run,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to say; - reads it from standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Say what this text file holds.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the speech here, as .wav or .flac of 16 bit.")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Say each text, or each line, side by side into a new folder."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Of the sounds in a --batch folder: wav or flac.")] = "wav",
    play: Annotated[bool, typer.Option("--play", help='Play it; needs the extra "play".')] = False,
    voice: options.Voice = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most likely codes, always the same speech (default 0.7).")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the k most likely values of a code; 0 keeps all (default 50).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same speech.")] = None,
    as_json: options.Json = False,
    runner: options.Runner = None,
    device: options.Device = "auto",
) -> None:
    """Say a text in one of the model's voices.

    With --out or --play all of the text is one speech. With --batch each argument, or each line of the file, is one of
    its own: 0000.wav, 0001.wav, ... and manifest.jsonl, which names them as training data does, with the "line" of the
    file that each is from. Where a line has nothing to say, "error" in the manifest says it, the others are spoken and
    the command fails.

    Example: muomni say runs/speak "Once upon a time there was a cat." --out cat.wav

    Example: muomni say runs/speak --file lines.txt --batch spoken --voice en-us
    """
    from muomni.cli.common import sound

    _check_options(text, file, out, batch, play, form)
    if out is not None:
        sound.check_target(out)
    texts = read_texts(text, file, whole=batch is None)
    first = next(iter(texts.values()))
    settings = options.given(voice=voice, temperature=temperature, top_k=top_k, seed=seed)
    with ExitStack() as stack:
        player = stack.enter_context(sound.Player()) if play else None
        from muomni.data.speech.spoken_text import spoken_words
        from muomni.infer.speech import SpeechSettings

        SpeechSettings.of(**settings)  # a wrong setting is told before the model is read
        if batch is None and not spoken_words(first):
            raise UserError(f"there is nothing to say in {first[:80]!r}: no letters and no digits")
        from muomni.api.model import MuOmni
        from muomni.infer.speech import speech_of

        model = MuOmni.from_pretrained(run, device=device, runner=runner)
        if batch is not None:
            _tell(batch, _say_all(model, texts, batch, form, settings), as_json)
            return
        speech = model.say(first, **settings)
        samples, rate = speech_of(speech)
        if out is not None:
            sound.write_sound(out, samples, rate)
        seconds, timing = round(len(samples) / rate, 3), speech.timing
        if as_json:
            values = {"text": first, "sample_rate": rate, "seconds": seconds}
            written = {} if out is None else {"audio": str(out)}
            print_json(values | written | {"timing": vars(timing) | {"real_time": timing.real_time}})
        else:
            speed = f"{timing.work_s:.2f} s, {timing.real_time:.3f} of its length"
            print(f"{'' if out is None else f'{out}: '}{seconds:.1f} s of speech in {speed}")
        if player is not None:
            player.play(samples, rate)


def _check_options(
    text: list[str] | None, file: Path | None, out: Path | None, batch: Path | None, play: bool, form: str
) -> None:
    """Refuses options that do not go together."""
    mistakes = {
        "give TEXT, - for standard input, or a text file with --file": not text and file is None,
        "give TEXT or --file, not both": text and file is not None,
        "- reads all of the text from standard input: give it alone": text and "-" in text and len(text) > 1,
        "--batch makes a folder of sounds: give it without --out and --play": batch is not None and (out or play),
        "say where the speech goes: --out FILE, --batch FOLDER or --play": not (batch or out or play),
        f"--format {form}: must be wav or flac": form not in ("wav", "flac"),
        "--format is for --batch; the ending of --out says its own": form != "wav" and batch is None,
    }
    for message, made in mistakes.items():
        if made:
            raise UserError(message)


def read_texts(text: list[str] | None, file: Path | None, *, whole: bool) -> dict[int, str]:
    """What is to be said, by its number: one text, or with `whole` False one for each argument or line.

    Raises:
        UserError: it cannot be read, or holds nothing.
    """
    name = "the text"
    if file is not None or text == ["-"]:
        name = "standard input" if file is None else str(file)
        try:
            content = (sys.stdin.buffer.read() if file is None else file.read_bytes()).decode("utf-8-sig")
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: is not UTF-8 text (byte {error.start})") from None
        texts = [content] if whole else text_lines(content)
    else:
        texts = ["\n".join(text or ())] if whole else list(text or ())
    numbered = {number: each.strip() for number, each in enumerate(texts, 1) if each.strip()}
    if not numbered:
        raise UserError(f"{name} holds nothing to say")
    return numbered


def _say_all(model: "MuOmni", texts: dict[int, str], folder: Path, form: str, settings: dict[str, Any]) -> list[Any]:
    """Speaks texts into a folder.

    Returns:
        The rows of the manifest.

    Raises:
        UserError: the folder is there already or cannot be written.
    """
    from muomni.cli.common.sound import write_sound
    from muomni.files import atomic_folder, json_line
    from muomni.infer.speech import speech_of

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; give a new folder")
    speeches = model.say_batch(list(texts.values()), on_error="reply", **settings)
    rows: list[dict[str, Any]] = []
    with writing(folder), atomic_folder(folder) as partial:
        for number, ((line, text), speech) in enumerate(zip(texts.items(), speeches, strict=True)):
            row: dict[str, Any] = {"line": line, "text": text}
            rows.append(row)
            if speech.error is not None:
                row["error"] = speech.error
                continue
            samples, rate = speech_of(speech)
            row |= {"audio": f"{number:04d}.{form}", "sample_rate": rate, "duration": round(len(samples) / rate, 3)}
            write_sound(partial / row["audio"], samples, rate)
        (partial / MANIFEST).write_bytes(b"".join(map(json_line, rows)))
    return rows


def _tell(folder: Path, rows: list[Any], as_json: bool) -> None:
    """Prints what was said.

    Raises:
        UserError: some texts could not be said.
    """
    seconds = round(sum(row.get("duration", 0) for row in rows), 3)
    errors = sum("error" in row for row in rows)
    if as_json:
        print_json({"out": str(folder), "texts": len(rows), "errors": errors, "seconds": seconds})
    else:
        print(f"{folder}: {len(rows) - errors} sounds, {seconds:.1f} s of speech")
    if errors:
        raise UserError(f'{errors} of the texts could not be said: see "error" in {folder / MANIFEST}')
