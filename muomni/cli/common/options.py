"""Options that several commands share, and what loading a model and decoding with it make of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from muomni.errors import UserError
from muomni.files import path_of_url, user_path

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.infer import SamplingParams

CacheDtype = Literal["auto", "int8"]
RunnerName = Literal["auto", "eager", "native", "compiled"]

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
Voice = Annotated[str | None, typer.Option(metavar="NAME", help="One of the model's voices; default: its first.")]
Runner = Annotated[
    RunnerName | None,
    typer.Option(
        help="What computes the decoder steps: eager (PyTorch's modules), native (C++, on CPUs), compiled "
        "(torch.compile); auto, the default, picks the fastest available."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value; may be repeated.")]


class _Option(NamedTuple):
    kind: Any
    help: str
    metavar: str | None = None


def _table(panel: str | None, rows: Mapping[str, _Option]) -> dict[str, Any]:
    """Annotations of options that are None unless they are given, by name."""
    return {
        name: Annotated[
            row.kind | None,
            typer.Option("--" + name.replace("_", "-"), rich_help_panel=panel, metavar=row.metavar, help=row.help),
        ]
        for name, row in rows.items()
    }


# Each is a field of `SamplingParams`; lines of a file may also have `logit_bias`, `logprobs` and `grammar`.
SAMPLING = _table(
    "Sampling",
    {
        "max_new_tokens": _Option(int, "Longest reply, in tokens (default 512)."),
        "temperature": _Option(float, "0 takes the most likely token (default 0.8)."),
        "top_k": _Option(int, "Keep the k most likely tokens; 0 keeps all (default 50)."),
        "top_p": _Option(float, "Keep the most likely tokens up to this sum (default 0.95)."),
        "min_p": _Option(float, "Keep tokens this likely relative to the best one (default 0.0)."),
        "repetition_penalty": _Option(float, "Above 1 makes tokens already there less likely (default 1.0)."),
        "frequency_penalty": _Option(
            float, "Taken from a token's logit for each time that the reply has it, -2 to 2 (default 0.0)."
        ),
        "presence_penalty": _Option(float, "Taken once for each token that the reply has, -2 to 2 (default 0.0)."),
        "stop": _Option(list[str], "End before this text; may be repeated.", "TEXT"),
        "seed": _Option(int, "The same seed gives the same reply."),
        "ignore_eos": _Option(bool, "Go on to the longest reply whatever the model says."),
    },
)
# Each is a field of `Decoding`.
DECODING = _table(
    None,
    {
        "int8": _Option(bool, "Make float weights int8 while they are read: a quarter of the memory."),
        "kv_cache_dtype": _Option(
            CacheDtype,
            "Dtype of keys and values: auto (default) is the model's; int8 holds much longer conversations, or more "
            "prompts side by side, in the same memory, and is slower on a CPU.",
        ),
        "speculate": _Option(
            bool,
            "Guess tokens from the text so far and check several in one step, while that is faster: for replies that "
            "repeat much of the prompt. The reply is the same. Needs --temperature 0.",
        ),
        "draft_model": _Option(
            str,
            "As --speculate, but a smaller run with the same tokenizer guesses: for replies that it would write much "
            "alike.",
            "RUN",
        ),
        "device": _Option(str, "cuda, mps or cpu; auto, the default, picks the first available."),
    },
) | {"runner": Runner}
MEDIA = _table(
    None,
    {
        "image": _Option(list[str], "Show this picture with the message; may be repeated.", "FILE"),
        "video": _Option(
            list[str],
            "Show this video with the message, one picture a second, 32 at most; may be repeated. Needs the extra "
            '"video".',
            "FILE",
        ),
        "audio": _Option(list[str], "Play this sound with the message; may be repeated.", "FILE"),
    },
)


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


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line; the others keep their defaults."""
    return {key: value for key, value in options.items() if value is not None and value != []}


def parts(media: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """The parts of a message that the options of `MEDIA` give: pictures, videos, then sounds."""
    return [{"type": kind, kind: local_path(path)} for kind, paths in media.items() for path in paths]


def local_path(text: str) -> str:
    """A path, which may be given as a `file:` address or below `~`."""
    return str(user_path(path_of_url(text) if text[:5].lower() == "file:" else text))


@dataclass(frozen=True)
class Decoding:
    """How a command loads its model and decodes with it: the values of `DECODING`.

    Raises:
        UserError: both --speculate and --draft-model are given.
    """

    int8: bool | None = None
    kv_cache_dtype: CacheDtype | None = None
    speculate: bool | None = None
    draft_model: str | None = None
    device: str = "auto"
    runner: RunnerName | None = None

    def __post_init__(self) -> None:
        if self.speculate and self.draft_model is not None:
            raise UserError(
                "--speculate guesses from the text so far, --draft-model by a smaller run: give one of them"
            )

    def load(self, run: str) -> "MuOmni":
        """The model.

        Raises:
            UserError: it cannot be loaded.
        """
        model = self._load(run, int8=self._makes_int8(run))
        if self.kv_cache_dtype is not None:
            model.cache_dtype = self.kv_cache_dtype
        return model

    def _makes_int8(self, run: str) -> bool:
        """Whether float weights are to be made int8; those of some runs are int8 already."""
        if not self.int8:
            return False
        from muomni.formats.pretrained import read_quantization
        from muomni.formats.tensors import resolve_folder

        folder = Path(run)
        return not folder.is_dir() or read_quantization(resolve_folder(folder)) is None

    def drafts(self, model: "MuOmni") -> "bool | MuOmni":
        """The `speculate` of `MuOmni.stream`; loads the smaller run.

        Raises:
            UserError: there is no such run, or it has other tokens.
        """
        if self.draft_model is None:
            return bool(self.speculate)
        from muomni.infer.speculative.draft_model import check_same_tokens

        draft = self._load(self.draft_model)
        check_same_tokens((model, draft), (model.tokenizer, draft.tokenizer))
        return draft

    def _load(self, run: str, *, int8: bool = False) -> "MuOmni":
        from muomni.api.model import MuOmni

        return MuOmni.from_pretrained(run, device=self.device, int8=int8, runner=self.runner)

    @property
    def drafting_option(self) -> str | None:
        """The option that asks for drafts, if one does."""
        return "--speculate" if self.speculate else None if self.draft_model is None else "--draft-model"

    def check(self, params: "SamplingParams") -> None:
        """Refuses sampling settings with which nothing is drafted.

        Raises:
            UserError: naming the settings.
        """
        if self.drafting_option and not params.is_greedy:
            from muomni.infer.sampling import PENALTIES

            penalties = [name for name, neutral in PENALTIES.items() if getattr(params, name) != neutral]
            name = penalties[0] if penalties else "repetition_penalty"
            raise UserError(
                f"{self.drafting_option} guesses the most likely tokens and needs --temperature 0 without "
                f"--{name.replace('_', '-')}; these are {params.temperature} and {getattr(params, name)}"
            )
