"""`muomni quantize`: a run as a folder with int8 weights, and what that changed."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json
from muomni.errors import UserError
from muomni.files import user_path
from muomni.progress import progress_bar

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.data import PackedDataset
    from muomni.eval.quantization_quality import Quality

_SEQ_LEN = 512


def command(
    run: options.Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    method: Annotated[
        Literal["int8"], typer.Option(help="int8: one byte a weight and a scale for each output channel.")
    ] = "int8",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Text to compare the two models on; the run's own validation data when not given."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of text to compare them on.")] = 64,
    compare: Annotated[bool, typer.Option(help="Compare the two models; --no-compare only writes.")] = True,
    keep_float: Annotated[
        Literal["never", "auto"],
        typer.Option(
            help="auto: compare a model whose layers compute with float copies where float is faster here. They are "
            "made in memory; what is written is the same."
        ),
    ] = "never",
    device: options.Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is already there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a model with int8 weights, a quarter of the size, and say what that changes.

    Example: muomni quantize runs/demo --method int8 --out runs/demo-int8
    """
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
    quality = None
    with progress_bar("quantise") as bar:
        if compare:
            reference = MuOmni.from_pretrained(run, device=device)
            if reference.is_quantized:
                raise UserError(f"{run} is quantised already")
            rows = _rows(run, data or [], reference)
        model = MuOmni.from_pretrained(run, device=device, int8=True)
        model.save_pretrained(out)
        choices = tune(model, keep_float)
        if compare:
            from muomni.eval.quantization_quality import compare_models

            compared = bar.add("compare", min(max_rows, rows.num_rows))
            quality = compare_models(reference, model, rows, max_rows, compared.update)
    after, before = sum(path.stat().st_size for path in out.glob("*.safetensors")), 4 * model.num_parameters()
    report: dict[str, Any] = {
        "bytes_float32": before,
        "bytes": after,
        "ratio": after / before,
        "bytes_of_float_copies": sum(choice.float_bytes for choice in choices),
        "kernels": [str(choice) for choice in choices],
        "run": run,
        "out": str(out),
        "method": method,
        "keep_float": keep_float,
    }
    if quality is not None:
        report["quality"] = asdict(quality) | {"perplexity_change": quality.perplexity_change}
    if as_json:
        print_json(report)
    else:
        _print(report, quality)


def _rows(run: str, data: list[Path], model: "MuOmni") -> "PackedDataset":
    """The rows to compare on: of `--data`, else of the validation data that the run's recipe names."""
    from muomni.config import DataSpec, Recipe, parse, read_json
    from muomni.data import PackedDataset, prepare
    from muomni.data.index.build import build_index

    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError(f"{run} has no tokenizer, so there is no text to compare the models on: --no-compare")
    context = model.config.thinker.max_position_embeddings
    if data:
        sources = DataSpec.model_validate({"train": [str(path) for path in data]}).train
        return PackedDataset(build_index(sources, tokenizer), min(_SEQ_LEN, context), shuffle=False)
    folder = user_path(run)
    recipe = next((path for path in (folder / "recipe.json", folder / ".." / "recipe.json") if path.is_file()), None)
    if recipe is None:
        raise UserError(f"{run} has no recipe that names validation data: give --data FILE, or --no-compare")
    spec = parse(Recipe, read_json(recipe), str(recipe)).data
    if not spec.train:
        raise UserError(f"{recipe} names no text to compare the models on: give --data FILE, or --no-compare")
    return PackedDataset(prepare(spec, tokenizer).val, min(spec.seq_len, context), shuffle=False)


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
