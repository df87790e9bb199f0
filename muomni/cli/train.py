"""`muomni train`: one stage from a recipe."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.config.loader import find_run
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.train.stage import TrainResult


def command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, a bundled recipe's name, or a run folder (takes its recipe).")
    ],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Train on these files or folders; sets data.train.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one key, such as --set optimizer.lr=3e-4, or all of a file's: --set @FILE."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")] = False,
    resume_from: Annotated[Path | None, typer.Option(help="Go on from this checkpoint of the run.")] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Go on although recipe or data are not what they were.")
    ] = False,
) -> None:
    """Train one stage. Ctrl-C saves and stops; --resume goes on as if nothing had happened.

    Example: muomni train text-tiny --data stories.jsonl --set max_steps=500

    Several processes, one a GPU: torchrun --nproc-per-node 2 -m muomni train text-tiny --data stories.jsonl
    """
    stage, run = find_run(recipe, _overrides(data or [], changes or []), out)
    from muomni import run_recipe

    result = run_recipe(stage, run, resume=resume, resume_from=resume_from, allow_changed=allow_changed)
    if result.is_main:
        _report(result, run, stage.codec is not None)
    if result.stopped:
        raise typer.Exit(130)


def _report(result: "TrainResult", run: Path, is_codec: bool) -> None:
    progress = result.progress
    for text in result.memory.lines():
        print(text)
    state = "stopped and saved" if result.stopped else "done"
    best = f"; best validation loss {progress.best_loss:.4f} at step {progress.best_step}" if progress.best_loss else ""
    print(f"{state}: step {progress.applied} of {result.total_steps} in {progress.seconds:.0f} s{best}")
    if result.stopped:
        print(f"go on: muomni train {run} --resume")
    elif is_codec:
        print(f'use it: muomni.formats.codec.load_codec("{run}")')
    else:
        print(f"chat with it: muomni chat {run}")
    if result.plot is not None:
        print(f"loss curve: {result.plot}")


def _overrides(data: list[Path], changes: list[str]) -> list[str]:
    if not data:
        return changes
    for path in data:
        if not path.exists():
            raise UserError(f"--data {path}: no such file or folder")
    return [*changes, "data.train=" + json.dumps([str(path) for path in data])]
