"""`muomni generate`: one reply, or replies to a file of prompts, for scripts."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from muomni.cli.common import options

if TYPE_CHECKING:
    from muomni.api.model import Prompt
    from muomni.cli.common.batch_file import BatchTotals, Job
    from muomni.cli.common.speculation import Speculation


Deterministic = Annotated[
    bool, typer.Option("--batch_invariant", help="Let no bit of a reply depend on the prompts beside it; slower.")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object: text, tokens, finish_reason, timing; with --batch the figures."
    ),
]


def command(
    run: options.Run,
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
    batch_invariant: Deterministic = False,
    image: options.Image = None,
    audio: options.Audio = None,
    video: options.Video = None,
    tuned: options.Tuned = None,
    cache: options.Cache = options.CacheDtype.auto,
    speculate: options.Speculate = False,
    draft: options.Draft = None,
    raw: options.Raw = False,
    system: options.System = None,
    as_json: AsJson = False,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    ignore_eos: options.IgnoreEos = None,
    device: options.Device = "auto",
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
    from muomni.cli.common.speculation import Speculation

    guessing = Speculation(speculate, draft)
    shown = options.media(image, audio, video)
    _check_options(prompt, batch, out, raw and system is not None, shown, raw)
    if batch_invariant:
        guessing.refuse("--batch_invariant, which lets nothing change the size of a step")
    sampling = options.given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    int8 = options.int8_by(tuned, run)
    if batch is not None and out is not None:
        from muomni.cli.common.batch_file import Job

        job = Job(batch, out, sampling, raw, system, batch_size, batch_invariant, guessing, cache.value, int8)
        _answer_file(run, device, job, as_json)
        return
    asked = _asked(prompt, shown, system)
    model = _Model(run, device, cache, int8)
    _answer(model, asked, sampling, as_json, {"raw": raw, "batch_invariant": batch_invariant}, guessing)


def _asked(prompt: str | None, shown: list[dict[str, str]], system: str | None) -> "Prompt":
    """What the command line asks: a text, or messages where there is more."""
    text = _read_prompt() if prompt == "-" else prompt or ""
    content: Any = [*shown, *([{"type": "text", "text": text}] if text else [])] if shown else text
    if system is None:
        return cast("Prompt", content)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def _answer_file(run: str, device: str, job: "Job", as_json: bool) -> None:
    """Answers a file of prompts and prints the figures.

    Raises:
        UserError: some of the prompts could not be answered; the others have been.
    """
    from muomni.cli.common.batch_file import answer_file
    from muomni.errors import UserError

    figures = answer_file(run, device, job)
    print(json.dumps(figures) if as_json else _in_words(figures))
    if figures["errors"]:
        raise UserError(f'{figures["errors"]} of the prompts could not be answered: see "error" in {job.replies}')


def _check_options(
    prompt: str | None, batch: Path | None, out: Path | None, raw_system: bool, shown: list[dict[str, str]], raw: bool
) -> None:
    """Refuses options that do not go together."""
    from muomni.errors import UserError

    if shown and (raw or batch is not None):
        other = "--raw continues a plain text" if raw else "prompts of a --batch file hold theirs themselves"
        raise UserError(f"--image, --audio and --video go with the message of a chat; {other}")
    if (prompt is None and not shown) == (batch is None):
        raise UserError("give one PROMPT, or a file of prompts with --batch and --out")
    if (batch is None) != (out is None):
        raise UserError("--batch and --out go together: the file of prompts, and the one of replies")
    if raw_system:
        raise UserError("--system says something in a chat; --raw continues a plain text: give one of them")


class _Model(NamedTuple):
    """What is read, and how."""

    run: str
    device: str
    cache: options.CacheDtype
    int8: bool


def _answer(
    asked: _Model,
    prompt: "Prompt",
    sampling: dict[str, Any],
    as_json: bool,
    how: dict[str, bool],
    guessing: "Speculation",
) -> None:
    """Prints one reply as it comes, or as JSON once it is whole."""
    from muomni.api.model import MuOmni
    from muomni.cli.common.terminal import say, speed
    from muomni.infer import SamplingParams

    guessing.check(SamplingParams.of(**sampling))  # a wrong setting is told before the model is read
    model = MuOmni.from_pretrained(asked.run, device=asked.device, int8=asked.int8)
    model.cache_dtype = asked.cache.value
    stream = model.stream(prompt, speculate=guessing.guesser(model, asked.device), **how, **sampling)
    if as_json:
        reply = stream.finish()
        timing = vars(reply.timing) | {"tokens_per_s": reply.timing.tokens_per_s}
        values = {"text": reply.text, "tokens": reply.tokens, "finish_reason": reply.finish_reason, "timing": timing}
        print(json.dumps(values, ensure_ascii=False))
        return
    say(stream)
    if sys.stderr.isatty():
        print(f"[{speed(stream.reply.timing)}]", file=sys.stderr)


def _in_words(figures: "BatchTotals") -> str:
    kept = f", {figures['kept']} were there" if figures["kept"] else ""
    speed = f"{figures['new_tokens']} tokens in {figures['seconds']:.1f} s, {figures['tokens_per_s']:,.0f} tokens/s"
    wrong = f", {figures['errors']} are errors" if figures["errors"] else ""
    return f"{figures['out']}: {figures['replies']} replies written{kept}{wrong}; {speed}"


def _read_prompt() -> str:
    """Standard input as text, without its last line end."""
    from muomni.errors import PromptError

    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt on standard input is not UTF-8 text (byte {error.start})") from None
