"""`muomni generate`: one reply, or replies to a file of prompts, for scripts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json
from muomni.errors import PromptError, UserError

if TYPE_CHECKING:
    from muomni.api.model import Prompt
    from muomni.cli.common.batch_file import Job


@options.group("sampling", options.SAMPLING)
@options.group("decoding", options.DECODING)
@options.group("media", options.MEDIA)
def command(
    run: options.Run,
    sampling: dict[str, Any],
    decoding: dict[str, Any],
    media: dict[str, list[str]],
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer every line of this JSONL file instead; see below."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the replies go; those that are there are kept.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts of a file that are answered side by side; fewer if memory is short.")
    ] = 32,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="Let no bit of a reply depend on the prompts beside it; slower.")
    ] = False,
    raw: options.Raw = False,
    system: options.System = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object: text, tokens, finish_reason, timing; with --batch the totals."
        ),
    ] = False,
) -> None:
    """Answer one prompt, or continue it with --raw. With --batch and --out, answer a file of prompts.

    A line of the file is a JSON string, or an object with "prompt" or "messages", and, where wanted, "id" and
    sampling settings that go before those of the command line. Pictures, sounds and videos are parts of a prompt, such
    as {"type": "image", "image": "cat.png"}, with paths from the file's folder on; where one is broken, "error" in the
    reply says it, the other lines are answered and the command fails. The replies are in the order of the lines; run
    the same command again to go on after an interruption.

    Example: muomni generate runs/demo "Tell me a story." --temperature 0 --json

    Example: muomni generate runs/omni "What is this?" --image cat.png

    Example: muomni generate runs/demo --batch prompts.jsonl --out replies.jsonl --seed 1
    """
    how = options.Decoding(**decoding)
    if media and (raw or batch is not None):
        other = "--raw continues a plain text" if raw else "prompts of a --batch file hold theirs themselves"
        raise UserError(f"--image, --audio and --video go with the message of a chat; {other}")
    if (prompt is None and not media) == (batch is None):
        raise UserError("give one PROMPT, or a file of prompts with --batch and --out")
    if (batch is None) != (out is None):
        raise UserError("--batch and --out go together: the file of prompts, and the one of replies")
    if raw and system is not None:
        raise UserError("--system says something in a chat; --raw continues a plain text: give one of them")
    if batch_invariant and how.drafting_option:
        raise UserError(
            f"{how.drafting_option} does not go together with --batch-invariant, which lets nothing change the size of "
            "a step: give one of them"
        )
    form = {"raw": raw, "batch_invariant": batch_invariant}
    if batch is not None and out is not None:
        from muomni.cli.common.batch_file import Job

        _answer_file(run, Job(batch, out, sampling, system, batch_size, how, **form), as_json)
    else:
        _answer(run, how, _prompt(prompt, options.parts(media), system), sampling | form, as_json)


def _answer_file(run: str, job: "Job", as_json: bool) -> None:
    """Answers a file of prompts and prints the totals.

    Raises:
        UserError: some of the prompts could not be answered; the others have been.
    """
    from muomni.cli.common.batch_file import answer_file

    totals = answer_file(run, job)
    if as_json:
        print_json(totals)
    else:
        kept = f", {totals['kept']} were there" if totals["kept"] else ""
        errors = f", {totals['errors']} are errors" if totals["errors"] else ""
        rate = f"{totals['new_tokens']} tokens in {totals['seconds']:.1f} s, {totals['tokens_per_s']:,.0f} tokens/s"
        print(f"{totals['out']}: {totals['replies']} replies written{kept}{errors}; {rate}")
    if totals["errors"]:
        raise UserError(f'{totals["errors"]} of the prompts could not be answered: see "error" in {job.replies}')


def _answer(run: str, how: options.Decoding, prompt: "Prompt", settings: dict[str, Any], as_json: bool) -> None:
    """Prints one reply as it comes, or as JSON once it is whole."""
    from muomni.cli.common.output import print_reply, speed
    from muomni.infer import SamplingParams

    sampling = {key: value for key, value in settings.items() if key in options.SAMPLING}
    how.check(SamplingParams.of(**sampling))  # a wrong setting is told before the model is loaded
    model = how.load(run)
    stream = model.stream(prompt, speculate=how.drafts(model), **settings)
    if as_json:
        reply = stream.finish()
        timing = vars(reply.timing) | {"tokens_per_s": reply.timing.tokens_per_s}
        names = ("text", "tokens", "finish_reason")
        print_json({name: getattr(reply, name) for name in names} | {"timing": timing})
        return
    print_reply(stream)
    if sys.stderr.isatty():
        print(f"[{speed(stream.reply.timing)}]", file=sys.stderr)


def _prompt(prompt: str | None, media: list[dict[str, str]], system: str | None) -> "Prompt":
    """The prompt of the command line: a text, or messages where there is more.

    Raises:
        PromptError: standard input is no text.
    """
    text = prompt or ""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"the prompt on standard input is not UTF-8 text (byte {error.start})") from None
    content: Any = [*media, *([{"type": "text", "text": text}] if text else [])] if media else text
    if system is None:
        return cast("Prompt", content)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]
