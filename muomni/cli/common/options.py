"""Options that several commands share. Each sampling option is one field of `SamplingParams`."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run folder (its best checkpoint, else its last), a checkpoint, a Qwen3 folder, or a name on the "
        "Hugging Face Hub.",
    ),
]
Device = Annotated[str, typer.Option(help="cuda, mps or cpu; auto picks the first available.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without the turns of a chat.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="What the system message says.")]
Image = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="FILE", help="Show this picture with the message; may be repeated."),
]
Audio = Annotated[
    list[str] | None,
    typer.Option("--audio", metavar="FILE", help="Play this sound with the message; may be repeated."),
]
Video = Annotated[
    list[str] | None,
    typer.Option(
        "--video",
        metavar="FILE",
        help="Show this video with the message, one picture a second, 32 at most; may be repeated. Needs the extra "
        '"video".',
    ),
]

Voice = Annotated[str | None, typer.Option(metavar="NAME", help="One of the model's voices; default: its first.")]


CacheDtype = Literal["auto", "int8"]
RunnerName = Literal["auto", "eager", "native", "compiled"]
Runner = Annotated[
    RunnerName | None,
    typer.Option(
        help="What computes the decoder steps: eager (PyTorch's modules), native (C++, on CPUs), compiled "
        "(torch.compile); auto, the default, picks the fastest available."
    ),
]
Tuned = Annotated[
    Path | None,
    typer.Option(
        "--tuned-config",
        metavar="FILE",
        help="A tuned.json of muomni bench: float weights are made int8 while they are read if that was faster.",
    ),
]
Cache = Annotated[
    CacheDtype | None,
    typer.Option(
        "--kv-cache-dtype",
        help="Dtype of keys and values: auto (default) is the model's; int8 holds much longer conversations, or more "
        "prompts side by side, in the same memory, and is slower on a CPU.",
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate",
        help="Guess tokens from the text so far and check several in one step, while that is faster: for replies that "
        "repeat much of the prompt. The reply is the same. Needs --temperature 0.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="RUN",
        help="As --speculate, but a smaller run with the same tokenizer guesses: for replies that it would write "
        "much alike.",
    ),
]

_GROUP = "Sampling"
MaxNewTokens = Annotated[
    int | None, typer.Option(rich_help_panel=_GROUP, help="Longest reply, in tokens (default 512).")
]
Temperature = Annotated[
    float | None, typer.Option(rich_help_panel=_GROUP, help="0 takes the most likely token (default 0.8).")
]
TopK = Annotated[
    int | None, typer.Option(rich_help_panel=_GROUP, help="Keep the k most likely tokens; 0 keeps all (default 50).")
]
TopP = Annotated[
    float | None,
    typer.Option(rich_help_panel=_GROUP, help="Keep the most likely tokens up to this sum (default 0.95)."),
]
MinP = Annotated[
    float | None,
    typer.Option(rich_help_panel=_GROUP, help="Keep tokens this likely relative to the best one (default 0.0)."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(rich_help_panel=_GROUP, help="Above 1 makes tokens already there less likely (default 1.0)."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=_GROUP, metavar="TEXT", help="End before this text; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(rich_help_panel=_GROUP, help="The same seed gives the same reply.")]
IgnoreEos = Annotated[
    bool | None,
    typer.Option("--ignore-eos", rich_help_panel=_GROUP, help="Go on to the longest reply whatever the model says."),
]


SAMPLING: dict[str, Any] = {
    "max_new_tokens": MaxNewTokens,
    "temperature": Temperature,
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "repetition_penalty": RepetitionPenalty,
    "stop": Stop,
    "seed": Seed,
    "ignore_eos": IgnoreEos,
}
# The fields of `common.decoding.Decoding`.
DECODING: dict[str, Any] = {
    "tuned": Tuned,
    "cache": Cache,
    "runner": Runner,
    "speculate": Speculate,
    "draft": Draft,
    "device": Annotated[
        str | None, typer.Option(help="cuda, mps or cpu; auto, the default, picks the first available.")
    ],
}


def group(name: str, members: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command options of its parameter `name`, a dict of those that were given on the command line.

    Args:
        name: of a parameter.
        members: names of options with their annotations; all are None by default.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            chosen = {key: values.pop(key) for key in members}
            function(**values, **{name: given(**chosen)})

        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != name]
        for key, annotation in members.items():
            parameters.append(
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        parameters.sort(key=lambda parameter: parameter.kind)
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def media(image: list[str] | None, audio: list[str] | None, video: list[str] | None) -> list[dict[str, str]]:
    """The parts of a message that `--image`, `--audio` and `--video` give: pictures, videos, then sounds."""
    kinds = {"image": image, "video": video, "audio": audio}
    return [{"type": kind, kind: path} for kind, paths in kinds.items() for path in paths or []]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line; the others keep their defaults."""
    return {key: value for key, value in options.items() if value is not None and value != []}


def int8_by(tuned: Path | None, run: str) -> bool:
    """Whether a model's weights are to be made int8 while they are read; see `Tuned`.

    Raises:
        ConfigError: the file is no `tuned.json`, or says nothing of a chat.
    """
    if tuned is None:
        return False
    from muomni.config.loader import tuned_for_chat
    from muomni.formats.pretrained import read_quantization
    from muomni.formats.tensors import resolve_folder

    faster, folder = tuned_for_chat(tuned), Path(run)
    return faster and (not folder.is_dir() or read_quantization(resolve_folder(folder)) is None)
