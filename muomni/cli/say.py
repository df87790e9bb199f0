"""`muomni say`: a model speaks a text."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options
from muomni.errors import UserError

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
    from muomni.cli.common import audio_output

    _check_options(text, file, out, batch, play, form)
    if out is not None:
        audio_output.check_target(out)
    texts, lines = _read_texts(text, file, whole=batch is None)
    settings = options.given(voice=voice, temperature=temperature, top_k=top_k, seed=seed)
    with ExitStack() as stack:
        player = stack.enter_context(audio_output.Player()) if play else None
        from muomni.data.speech.spoken_text import spoken_words
        from muomni.infer.speech import SpeechSettings

        SpeechSettings.of(**settings)  # a wrong setting is told before the model is read
        if batch is None and not spoken_words(texts[0]):
            raise UserError(f"there is nothing to say in {texts[0][:80]!r}: no letters and no digits")
        from muomni.api.model import MuOmni
        from muomni.infer.speech import speech_of

        model = MuOmni.from_pretrained(run, device=device, runner=runner)
        if batch is not None:
            _say_all(model, texts, lines, batch, form, settings, as_json)
            return
        speech = model.say(texts[0], **settings)
        samples, rate = speech_of(speech)
        values: dict[str, Any] = {"text": texts[0]}
        if out is not None:
            audio_output.write_sound(out, samples, rate)
            values["audio"] = str(out)
        timing = vars(speech.timing) | {"real_time": speech.timing.real_time}
        values |= {"sample_rate": rate, "seconds": round(len(samples) / rate, 3), "timing": timing}
        if as_json:
            print(json.dumps(values, ensure_ascii=False))
        else:
            speed = f"{speech.timing.work_s:.2f} s, {speech.timing.real_time:.3f} of its length"
            print(f"{'' if out is None else f'{out}: '}{values['seconds']:.1f} s of speech in {speed}")
        if player is not None:
            player.play(samples, rate)


def _check_options(
    text: list[str] | None, file: Path | None, out: Path | None, batch: Path | None, play: bool, form: str
) -> None:
    """Refuses options that do not go together."""
    if not text and file is None:
        raise UserError("give TEXT, - for standard input, or a text file with --file")
    if text and file is not None:
        raise UserError("give TEXT or --file, not both")
    if text and "-" in text and len(text) > 1:
        raise UserError("- reads all of the text from standard input: give it alone")
    if batch is not None and (out is not None or play):
        raise UserError("--batch makes a folder of sounds: give it without --out and --play")
    if batch is None and out is None and not play:
        raise UserError("say where the speech goes: --out FILE, --batch FOLDER or --play")
    if form not in ("wav", "flac"):
        raise UserError(f"--format {form}: must be wav or flac")
    if form != "wav" and batch is None:
        raise UserError("--format is for --batch; the ending of --out says its own")


def _read_texts(text: list[str] | None, file: Path | None, *, whole: bool) -> tuple[list[str], list[int] | None]:
    """What is to be said: one text, or with `whole` False one for each argument or line.

    Returns:
        The texts, and the number of the line of each where they are lines.

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
        texts = [content] if whole else content.split("\n")
    else:
        texts = ["\n".join(text or ())] if whole else list(text or ())
    numbered = [(number, each.strip()) for number, each in enumerate(texts, 1) if each.strip()]
    if not numbered:
        raise UserError(f"{name} holds nothing to say")
    of_lines = not whole and (file is not None or text == ["-"])
    return [each for _, each in numbered], [number for number, _ in numbered] if of_lines else None


def _say_all(
    model: "MuOmni",
    texts: list[str],
    lines: list[int] | None,
    folder: Path,
    form: str,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Speaks texts into a folder.

    Raises:
        UserError: the folder is there already or cannot be written, or some texts could not be said; the others are.
    """
    from muomni.cli.common.audio_output import write_sound
    from muomni.files import atomic_folder, json_line
    from muomni.infer.speech import speech_of

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; give a new folder")
    speeches = model.say_batch(texts, on_error="reply", **settings)
    rows: list[dict[str, Any]] = []
    try:
        with atomic_folder(folder) as partial:
            for number, (text, speech) in enumerate(zip(texts, speeches, strict=True)):
                row: dict[str, Any] = {} if lines is None else {"line": lines[number]}
                rows.append(row)
                if speech.error is not None:
                    row |= {"text": text, "error": speech.error}
                    continue
                samples, rate = speech_of(speech)
                name = f"{number:04d}.{form}"
                write_sound(partial / name, samples, rate)
                seconds = round(len(samples) / rate, 3)
                row |= {"audio": name, "text": text, "sample_rate": rate, "duration": seconds}
            (partial / MANIFEST).write_bytes(b"".join(map(json_line, rows)))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    said = [row for row in rows if "error" not in row]
    values = {
        "out": str(folder),
        "texts": len(rows),
        "errors": len(rows) - len(said),
        "seconds": round(sum(row["duration"] for row in said), 3),
    }
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        print(f"{folder}: {len(said)} sounds, {values['seconds']:.1f} s of speech")
    if values["errors"]:
        raise UserError(f'{values["errors"]} of the texts could not be said: see "error" in {folder / MANIFEST}')
