"""Running a pipeline: stages in their order, each in a folder of its own, resumable at any moment."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muomni.api.training import train
from muomni.config.pipeline import STORED, Pipeline, Stage
from muomni.config.recipe import Recipe
from muomni.errors import TrainingError, UserError
from muomni.files import follow, link_atomic, write_atomic, write_json
from muomni.html_page import render
from muomni.training.run_folder import only_writer
from muomni.training.signals import handled
from muomni.training.stage import MEMORY, RunCompleteError

# In the folder of a stage that is complete.
_DONE = "stage.json"
OVERVIEW = "report.html"
_WAIT_S = 0.5
_CTRL_C = 130


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        name: of the stage.
        folder: of its run, relative to the pipeline's.
        seconds: that it took, over all its parts.
        steps: optimizer steps; None of a command.
        best_loss: the lowest validation loss; None without.
        peak_mib: the most memory; None of a command.
    """

    name: str
    folder: str
    seconds: float
    steps: int | None = None
    best_loss: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class PipelineResult:
    """How a pipeline ended.

    Attributes:
        run: its folder.
        stages: those that are complete.
        stopped: a signal ended it before its last stage.
        is_main: this process reports it.
    """

    run: Path
    stages: tuple[StageResult, ...]
    stopped: bool
    is_main: bool = True


def run_pipeline(
    pipeline: Pipeline,
    *,
    resume: bool = False,
    allow_changed: bool = False,
    say: Callable[[str], None] = print,
) -> PipelineResult:
    """Runs what is not done of a pipeline. Under torchrun every process calls this, with the same arguments.

    Each stage is an ordinary run in `NN-NAME` below the pipeline's folder. `best` there is the best checkpoint of the
    last stage that has trained a model, so the folder can be chatted with at any time. `report.html` has all stages.

    Args:
        pipeline: its stages.
        resume: go on where an earlier call stopped: complete stages are skipped, the one under way goes on bit by bit.
        allow_changed: as of `train`.
        say: told what happens, a line each.

    Raises:
        UserError: the folder holds a pipeline and `resume` is not given, or a stage cannot be run.
        TrainingError: a stage failed.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    with only_writer(pipeline.run) if is_main else nullcontext():
        if is_main:
            _claim(pipeline, resume)
        results: list[StageResult] = []
        for number, stage in enumerate(pipeline.stages, 1):
            title = f"stage {number} of {len(pipeline.stages)}, {stage.name}"
            result = _done(stage)
            if result is not None:
                say(f"{title}: was done in {result.seconds:.0f} s")
            else:
                say(f"{title}: {stage.folder}")
                result = _run(stage, pipeline, is_main, allow_changed)
                if result is None:
                    return PipelineResult(pipeline.run, tuple(results), stopped=True, is_main=is_main)
            results.append(result)
            if is_main:
                _publish(pipeline, stage, results)
        return PipelineResult(pipeline.run, tuple(results), stopped=False, is_main=is_main)


def _claim(pipeline: Pipeline, resume: bool) -> None:
    stored = pipeline.run / STORED
    if stored.exists() and not resume:
        raise UserError(
            f"{pipeline.run} already holds a pipeline; --resume goes on with it, --out names another folder"
        )
    if resume and not stored.exists():
        raise UserError(f"nothing to resume: {pipeline.run} holds no pipeline")
    write_atomic(stored, json.dumps(pipeline.values, indent=2) + "\n")


def _done(stage: Stage) -> StageResult | None:
    """The result of a complete stage."""
    path = stage.folder / _DONE
    if not path.is_file():
        return None
    return StageResult(**json.loads(path.read_text(encoding="utf-8")))


def _run(stage: Stage, pipeline: Pipeline, is_main: bool, allow_changed: bool) -> StageResult | None:
    """Runs a stage to its end; None where a signal stopped it."""
    relative = str(stage.folder.relative_to(pipeline.run))
    if isinstance(stage.work, Recipe):
        try:
            trained = train(
                stage.work, stage.folder, resume=(stage.folder / "last").exists(), allow_changed=allow_changed
            )
            progress, stopped = trained.progress, trained.stopped
        except RunCompleteError as error:  # it had ended, but that was not noted
            progress, stopped = error.progress, False
        if stopped:
            return None
        result = StageResult(
            stage.name, relative, progress.seconds, progress.applied, progress.best_loss, _peak_mib(stage.folder)
        )
    elif is_main:
        seconds = _command(stage, stage.work)
        if seconds is None:
            return None
        result = StageResult(stage.name, relative, seconds)
    else:
        result = _of_main(stage)
    if is_main:
        stage.folder.mkdir(parents=True, exist_ok=True)
        write_json(stage.folder / _DONE, asdict(result))
    return result


def _peak_mib(folder: Path) -> float | None:
    """The most that a stage used, as it wrote down."""
    path = folder / MEMORY
    if not path.is_file():
        return None
    reading = json.loads(path.read_text(encoding="utf-8"))["reading"]
    return next((value for key, value in reading.items() if key.endswith("_peak_mib")), None)


def _command(stage: Stage, words: tuple[str, ...]) -> float | None:
    """Seconds that a command took in a process of its own; None where a signal stopped it.

    Raises:
        UserError, TrainingError: it failed, and has said why.
    """
    began = time.perf_counter()
    # A process of its own, not one of torchrun's.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    child = subprocess.Popen([sys.executable, "-m", "muomni", *words], env=environment)

    def pass_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # a terminal's Ctrl-C reaches the child by itself
            child.send_signal(number)

    with handled(pass_on):
        code = child.wait()
    if code == _CTRL_C or code < 0:
        return None
    if code == UserError.exit_code:
        raise UserError(f"stage {stage.name} cannot be run: see the message above")
    if code:
        raise TrainingError(f"stage {stage.name} ended with exit code {code}; see above")
    return time.perf_counter() - began


def _of_main(stage: Stage) -> StageResult:
    """Waits until the first process has run a command."""
    while (result := _done(stage)) is None:
        time.sleep(_WAIT_S)
    return result


def _publish(pipeline: Pipeline, stage: Stage, results: list[StageResult]) -> None:
    """Links the best model so far, and writes the report."""
    if isinstance(stage.work, Recipe) and stage.work.codec is None:
        best = follow(stage.folder / ("best" if (stage.folder / "best").exists() else "last"))
        link_atomic(pipeline.run / "best", f"{stage.folder.name}/{best.name}")
    plots: list[dict[str, Any]] = []
    for result in results:
        plot = pipeline.run / result.folder / "loss.png"
        if plot.is_file():
            plots.append({"name": result.name, "png": base64.b64encode(plot.read_bytes()).decode()})
    values = {"stages": results, "plots": plots, "total": len(pipeline.stages)}
    page = render("muomni.api", "pipeline.html", name=pipeline.name, **values)
    write_atomic(pipeline.run / OVERVIEW, page)
