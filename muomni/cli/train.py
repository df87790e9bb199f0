"""`muomni train`: one stage from a recipe, or a pipeline of stages."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.cli.common.output import print_table
from muomni.config.loader import find_run
from muomni.config.pipeline import Pipeline, is_pipeline, load_pipeline
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.training.stage import TrainResult


def command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe or pipeline: a file, a bundled name, or a run folder (takes its recipe).")
    ],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Train on these files or folders; sets data.train.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One key: --set optimizer.lr=3e-4; all of a file's: --set @FILE; a pipeline's: STAGE.KEY=VALUE.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, exactly.")] = False,
    resume_from: Annotated[Path | None, typer.Option(help="Go on from this checkpoint of the run.")] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Go on although recipe or data are not what they were.")
    ] = False,
) -> None:
    """Train one stage, or a pipeline of stages. Ctrl-C saves and stops; --resume goes on as if nothing had happened.

    Example: muomni train text-tiny --data stories.jsonl --set max_steps=500

    Several processes, one a GPU: torchrun --nproc-per-node 2 -m muomni train text-tiny --data stories.jsonl
    """
    if is_pipeline(recipe):
        if data or resume_from is not None:
            raise UserError(f"{recipe} is a pipeline: its stages name their data, and it goes on with --resume")
        _pipeline(load_pipeline(recipe, changes or [], out), resume, allow_changed)
        return
    stage, run = find_run(recipe, _overrides(data or [], changes or []), out)
    from muomni import train

    result = train(stage, run, resume=resume, resume_from=resume_from, allow_changed=allow_changed)
    if result.is_main:
        _report(result, run, stage.codec is not None)
    if result.stopped:
        raise typer.Exit(130)


def _pipeline(pipeline: Pipeline, resume: bool, allow_changed: bool) -> None:
    from muomni.api.pipeline import OVERVIEW, run_pipeline

    began = os.environ.get("RANK", "0") == "0"
    result = run_pipeline(pipeline, resume=resume, allow_changed=allow_changed, say=print if began else lambda _: None)
    if result.is_main and result.stages:
        rows = [
            (
                stage.name,
                f"{stage.seconds / 60:.1f}",
                "" if stage.steps is None else f"{stage.steps:,}",
                "" if stage.best_loss is None else f"{stage.best_loss:.4f}",
            )
            for stage in result.stages
        ]
        print_table(("stage", "minutes", "steps", "best validation loss"), rows, left=("stage",))
        print(f"report: {result.run / OVERVIEW}")
    if result.stopped:
        if result.is_main:
            print(f"stopped and saved; go on: muomni train {result.run} --resume")
        raise typer.Exit(130)
    if result.is_main:
        print(f"chat with it: muomni chat {result.run}")


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
