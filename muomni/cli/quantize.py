"""`muomni quantize`: a run as a folder with int8 weights, and what that changed."""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common import options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from rich.progress import Progress

    from muomni.accel.int8 import KernelChoice
    from muomni.api.model import MuOmni
    from muomni.data import PackedDataset
    from muomni.eval.quantization_quality import Quality

_SEQ_LEN = 512


class KeepFloat(StrEnum):
    """What layers compute with whose shape is faster in float."""

    never = "never"
    auto = "auto"


class Method(StrEnum):
    """What the weights become."""

    int8 = "int8"


def command(
    run: options.Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    to: Annotated[
        Method, typer.Option("--method", help="int8: one byte a weight and a scale for each output channel.")
    ] = (Method.int8),
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Text to compare the two models on; the run's own validation data when not given."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of text to compare them on.")] = 64,
    compare: Annotated[bool, typer.Option(help="Compare the two models; --no-compare only writes.")] = True,
    keep_float: Annotated[
        KeepFloat,
        typer.Option(
            help="auto: compare a model whose layers compute with float copies where float is faster here. They are "
            "made in memory; what is written is the same."
        ),
    ] = KeepFloat.never,
    device: options.Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model with int8 weights, a quarter of the size, and say what that changes.

    Example: muomni quantize runs/demo --method int8 --out runs/demo-int8
    """
    from muomni.errors import UserError

    if data and not compare:
        raise UserError("--data is text to compare on, and --no-compare says not to: give one of them")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty: give a new folder, or --force to replace the model in it")

    from muomni.accel.int8 import tune
    from muomni.api.model import MuOmni
    from muomni.formats.pretrained import check_replaceable

    check_replaceable(out.resolve())
    if missing := [path for path in data or [] if not path.exists()]:
        raise UserError(f"--data {missing[0]}: no such file or folder")
    rows = None
    with _bar() as bar:
        if compare:
            reference = MuOmni.from_pretrained(run, device=device)
            if reference.is_quantized:
                raise UserError(f"{run} is quantised already")
            rows = _rows(run, data or [], reference)
        task = bar.add_task("quantise", total=None)
        model = MuOmni.from_pretrained(run, device=device, int8=True)
        model.save_pretrained(out)
        choices = tune(model, "auto" if keep_float is KeepFloat.auto else "never")
        bar.update(task, total=1, completed=1)
        quality = None
        if rows is not None:
            quality = _compare(reference, model, rows, max_rows, bar)
    report = _report(model, out, choices) | {"run": run, "out": str(out), "method": to.value, "keep_float": keep_float}
    if quality is not None:
        report["quality"] = asdict(quality) | {"perplexity_change": quality.perplexity_change}
    if as_json:
        print(json.dumps(report))
    else:
        _print(report, quality)


def _bar() -> "AbstractContextManager[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _rows(run: str, data: list[Path], model: "MuOmni") -> "PackedDataset":
    """The rows to compare on: of `--data`, else of the validation data that the run's recipe names."""
    from muomni.config import DataSpec, Recipe, parse, read_json
    from muomni.data import PackedDataset, prepare
    from muomni.data.index.build import build_index
    from muomni.errors import UserError

    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError(f"{run} has no tokenizer, so there is no text to compare the models on: --no-compare")
    context = model.config.thinker.max_position_embeddings
    if data:
        sources = DataSpec.model_validate({"train": [str(path) for path in data]}).train
        return PackedDataset(build_index(sources, tokenizer), min(_SEQ_LEN, context), shuffle=False)
    folder = Path(run).expanduser()
    recipe = next((path for path in (folder / "recipe.json", folder / ".." / "recipe.json") if path.is_file()), None)
    if recipe is None:
        raise UserError(f"{run} has no recipe that names validation data: give --data FILE, or --no-compare")
    spec = parse(Recipe, read_json(recipe), str(recipe)).data
    if not spec.train:
        raise UserError(f"{recipe} names no text to compare the models on: give --data FILE, or --no-compare")
    return PackedDataset(prepare(spec, tokenizer).val, min(spec.seq_len, context), shuffle=False)


def _compare(reference: "MuOmni", model: "MuOmni", rows: "PackedDataset", max_rows: int, bar: "Progress") -> "Quality":
    from muomni.eval.quantization_quality import compare_models

    task = bar.add_task("compare", total=min(max_rows, rows.num_rows))
    return compare_models(reference, model, rows, max_rows, lambda done: bar.update(task, completed=done))


def _report(model: "MuOmni", out: Path, choices: "Sequence[KernelChoice]") -> dict[str, Any]:
    """Sizes of the weights as float32 and as they are now, on disk, and what each shape computes with."""
    after = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    before = 4 * model.num_parameters()
    copies = sum(choice.float_bytes for choice in choices)
    kernels = [str(choice) for choice in choices]
    sizes = {"bytes_float32": before, "bytes": after, "ratio": after / before, "bytes_of_float_copies": copies}
    return sizes | {"kernels": kernels}


def _print(report: dict[str, Any], quality: "Quality | None") -> None:
    size = f"{report['bytes_float32']:,} bytes in float32, {report['bytes']:,} now ({report['ratio']:.3f}×)"
    print(f"{report['out']}: {report['method']}; {size}")
    for line in report["kernels"]:
        print(f"  {line}")
    if quality is None:
        return
    print(f"compared with the float model on {quality.targets:,} tokens:")
    print(
        f"  perplexity     {quality.reference_perplexity:.4f} → {quality.perplexity:.4f} "
        f"({100 * quality.perplexity_change:+.3f} %)"
    )
    print(f"  KL divergence  {quality.kl:.2e} nats a token")
    print(f"  same top token {100 * quality.top1:.2f} %")
