"""`muomni generate`: one reply, for scripts."""

import json
import sys
from typing import Annotated

import typer

from muomni.cli import _options as options


def command(
    run: options.Run,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")],
    raw: options.Raw = False,
    system: options.System = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, tokens, finish_reason, timing.")
    ] = False,
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
    """Answer one prompt, or continue it with --raw.

    Example: muomni generate runs/demo "Tell me a story." --temperature 0 --json
    """
    from muomni.errors import UserError

    if raw and system is not None:
        raise UserError("--system says something in a chat; --raw continues a plain text: give one of them")
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
    text = _read_prompt() if prompt == "-" else prompt

    from muomni.api import MuOmni, Prompt
    from muomni.cli._terminal import say, speed
    from muomni.infer import SamplingParams

    SamplingParams.of(**sampling)  # a wrong setting is told before the model is read
    model = MuOmni.from_pretrained(run, device=device)
    asked: Prompt = text
    if system is not None:
        asked = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    stream = model.stream(asked, raw=raw, **sampling)
    if as_json:
        reply = stream.finish()
        timing = vars(reply.timing) | {"tokens_per_s": reply.timing.tokens_per_s}
        values = {"text": reply.text, "tokens": reply.tokens, "finish_reason": reply.finish_reason, "timing": timing}
        print(json.dumps(values, ensure_ascii=False))
        return
    say(stream)
    if sys.stderr.isatty():
        print(f"[{speed(stream.reply.timing)}]", file=sys.stderr)


def _read_prompt() -> str:
    """Standard input as text, without its last line end."""
    from muomni.errors import PromptError

    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt on standard input is not UTF-8 text (byte {error.start})") from None
