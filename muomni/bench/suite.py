"""All of the bench: from what the user named to a report with its page, its recipe fragment and its claims."""

import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from muomni import __version__
from muomni.accel.measurements.statistics import MARGIN
from muomni.accel.technique import Part
from muomni.bench.decoding.comparisons import Plan
from muomni.bench.decoding.models import Files, make_model_folder
from muomni.bench.decoding.report_rows import lengths, measure_infer
from muomni.bench.process import RefusedError
from muomni.bench.report import recommendations
from muomni.bench.report.html import page
from muomni.bench.report.report import JSON, ModelInfo, Report, this_machine
from muomni.bench.report.sections import Effort, Found, Say, Target
from muomni.bench.speech import measure_speech
from muomni.bench.training.report_rows import measure_train
from muomni.config import PRESET_NAMES, OmniConfig, preset
from muomni.errors import UserError
from muomni.files import atomic_file
from muomni.formats.pretrained import read_config
from muomni.formats.tensors import resolve_folder

PAGE = "report.html"


@dataclass(frozen=True)
class Asked:
    """What the user wants.

    Attributes:
        model: a run, a model's folder, or a preset.
        parts: of the bench.
        effort: how much.
        command: that was typed.
    """

    model: str
    parts: tuple[Part, ...]
    effort: Effort
    command: str


def find_target(name: str) -> Target:
    """The model that `name` means.

    Raises:
        UserError: it is neither a folder with a model nor a known shape.
        ConfigError: its configuration cannot be read.
    """
    path, presets = Path(name), ", ".join(PRESET_NAMES)
    if name in PRESET_NAMES and not path.is_dir():
        return Target(name, preset(name).thinker, None)
    if not path.exists():
        raise UserError(f"{name}: neither a run folder nor a preset; presets: {presets}")
    if not path.is_dir():
        raise UserError(f"{name}: is a file; name a run folder or a preset ({presets})")
    folder = resolve_folder(path)
    return Target(name, read_config(folder)[0].thinker, folder)


def run(asked: Asked, say: Say) -> Report:
    """Measures what was asked for.

    Raises:
        UserError: there is no such model, or it cannot be measured here at all.
    """
    began, date = time.monotonic(), datetime.now(UTC)
    target = find_target(asked.model)
    if "infer" in asked.parts:
        lengths(target.thinker.max_position_embeddings)  # refused before anything is measured
    found: dict[Part, Found] = {}
    with tempfile.TemporaryDirectory(prefix="muomni-bench-") as work:
        for part in asked.parts:
            say(f"{part}: measuring")
            try:
                found[part] = _measure(part, target, Path(work), asked.effort, say)
            except RefusedError as error:  # while it was measured: other programs took what was free before
                raise UserError(f"{asked.model}: {error}; end other programs, or take a smaller model") from None
    rows = tuple(row for part in found.values() for row in part.rows)
    infer = found.get("infer", Found(()))
    return Report(
        date=date.isoformat(timespec="seconds"),
        command=asked.command,
        mode=asked.effort.mode,
        seconds=time.monotonic() - began,
        machine=this_machine(),
        model=ModelInfo(
            name=asked.model, parameters=target.thinker.num_parameters(), random_weights=target.folder is None
        ),
        versions={"muomni": __version__, "torch": torch.__version__, "python": platform.python_version()},
        settings={f"{part}.{key}": value for part, one in found.items() for key, value in one.settings},
        rows=rows,
        noise=tuple(text for one in found.values() for text in one.noise),
        margin=max((one.margin for one in found.values()), default=MARGIN),
        bandwidth_gb_per_s=infer.bandwidth,
        decode=infer.decode,
        scaling=infer.scaling,
        memory=tuple(bar for one in found.values() for bar in one.memory),
        recipe=recommendations.fragment(rows),
        advice=recommendations.advice(rows, None if target.folder is None else asked.model),
    )


def _measure(part: Part, target: Target, work: Path, effort: Effort, say: Say) -> Found:
    if part == "train":
        return measure_train(target, effort, say)
    if part == "speech":
        return Found(measure_speech(target, effort, say))
    folder = target.folder
    if folder is None:
        folder = work / "model"
        say(f"drawing the weights of {target.name}")
        make_model_folder(OmniConfig(thinker=target.thinker), folder)
    prompt, new = lengths(target.thinker.max_position_embeddings)
    plan = Plan(target.thinker, Files(folder, work), work, prompt, new, torch.get_num_threads())
    return measure_infer(target, plan, effort, say)


def make_folder(out: Path) -> None:
    """Makes the folder that reports go to.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None


def write(report: Report, out: Path) -> Sequence[Path]:
    """Writes `report.json` and `report.html` into a folder; returns their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(out)
    paths = [out / JSON, out / PAGE]
    report.save(paths[0])
    with atomic_file(paths[1]) as partial:
        partial.write_text(page(report), encoding="utf-8")
    return paths
