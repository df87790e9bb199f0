"""Options that several commands share. Each sampling option is one field of `SamplingParams`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run folder (its best checkpoint, else its last), a checkpoint, a Qwen3 folder, or a name on the "
        "Hugging Face Hub.",
    ),
]
Device = Annotated[str, typer.Option(help="cuda, mps or cpu; auto takes the first of them that is there.")]
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


class CacheDtype(StrEnum):
    """What keys and values are stored as."""

    auto = "auto"
    int8 = "int8"


Tuned = Annotated[
    Path | None,
    typer.Option(
        "--tuned-config",
        metavar="FILE",
        help="A tuned.json of muomni bench: float weights are made int8 while they are read if that was faster.",
    ),
]
Cache = Annotated[
    CacheDtype,
    typer.Option(
        "--kv-cache-dtype",
        help="What keys and values are stored as: auto as the model computes, int8 for much longer conversations or "
        "more prompts side by side in the same memory; slower on a CPU.",
    ),
]
Speculate = Annotated[
    bool,
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


def media(image: list[str] | None, audio: list[str] | None, video: list[str] | None) -> list[dict[str, str]]:
    """The parts of a message that `--image`, `--audio` and `--video` give: pictures, videos, then sounds."""
    kinds = {"image": image, "video": video, "audio": audio}
    return [{"type": kind, kind: path} for kind, paths in kinds.items() for path in paths or []]


def given(**options: Any) -> dict[str, Any]:
    """The sampling options that were given on the command line; the others keep their defaults."""
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
