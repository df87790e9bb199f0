"""The `muomni` command: a table of subcommands, each loaded only when it is called.

To add a subcommand, write `muomni/cli/NAME.py` that defines `command` (a function with Typer
annotations, or a `typer.Typer` for a group) and add its line to `COMMANDS`. A subcommand raises the
errors of `muomni.errors`; `main` turns them into a message and an exit code.
"""

import io
import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group

from muomni.errors import MuOmniError, UserError

# name: one line of help. The code is in `muomni.cli.NAME`; nothing of it is loaded to print `muomni --help`.
COMMANDS: dict[str, str] = {
    "demo": "Train a small model on text that is already here, and talk with it.",
    "plan": "Forecast the memory of a recipe, and say which settings fit.",
    "train": "Train one stage of a recipe; --resume goes on where it stopped.",
    "chat": "Talk to a model in the terminal.",
    "generate": "Answer one prompt, for scripts.",
    "say": "Speak a text in one of a model's voices.",
    "transcribe": "Write down what is said in recordings.",
    "serve": "Serve a model over HTTP as OpenAI's API.",
    "bench": "Measure training and inference on this machine, beside other libraries where asked.",
    "data": "Read training data once and say what is wrong; make speech from texts.",
    "eval": "Judge a model: what it reads, sees, hears and says.",
    "quantize": "Write a model with int8 weights, a quarter of the size, and say what that changes.",
    "export": "Write a model as a folder that other programs load.",
    "config": "Recipes and presets: JSON Schema, a recipe with every default filled in, sizes.",
}


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the command line on `args` (default: the process's own) and exits.

    Exit codes: 0 done; 1 an error of ours, or a bug, which shows its traceback; 2 a mistake in what
    the user gave; 130 Ctrl-C. With `MUOMNI_DEBUG=1` every error shows its traceback.
    """
    code: int | str | None
    # A stream that the caller closed is None, and the next file that is opened gets its number.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    # Names of files need not be UTF-8, nor need the terminal know all characters.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _root().main(args=args, prog_name="muomni")
        code = 0
    except SystemExit as stop:  # Typer ends this way, also after a usage error (2) and Ctrl-C (130)
        code = stop.code
    except KeyboardInterrupt:
        code = 130
    except MuOmniError as error:
        code = _tell(error, error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        code = _tell(UserError(f"{error.filename}: {error.strerror}"), UserError.exit_code)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _tell(error: Exception, code: int) -> int:
    if os.environ.get("MUOMNI_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    else:
        print(f"muomni: {error}", file=sys.stderr)
    return code


class _LazyGroup(TyperGroup):
    """Lists commands from stubs that hold name and help, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(str(name)), rest


def _root() -> TyperGroup:
    app = typer.Typer(
        name="muomni",
        cls=_LazyGroup,
        help="Train and run μOmni, a compact omni model. Begin with: muomni demo",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for name, line in COMMANDS.items():
        app.command(name, help=line)(_stub)
    return get_group(app)


def _load(name: str) -> Any:
    command = import_module(f"muomni.cli.{name}").command
    holder = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
    if isinstance(command, typer.Typer):
        holder.add_typer(command, name=name)
    else:
        holder.command(name)(command)
    return get_group(holder).commands[name]


def _stub() -> None:
    """Stands in the list of commands; `_LazyGroup` never calls it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from muomni import __version__

        print(f"muomni {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
