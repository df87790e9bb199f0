"""`muomni export`: a run as a folder that other programs load."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from muomni.cli import _options as options


class Format(StrEnum):
    """What can be written."""

    hf = "hf"


class Dtype(StrEnum):
    """Of the weights in the file."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def command(
    run: options.Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    format: Annotated[Format, typer.Option(help="hf: a Qwen3 folder for transformers, vLLM and others.")] = Format.hf,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; the run's own when not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is already there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object about what was written.")] = False,
) -> None:
    """Write a model in the form of another program.

    Example: muomni export runs/demo --format hf --out demo-hf
    """
    from muomni.errors import UserError

    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty: give a new folder, or --force to replace the model in it")

    import torch

    from muomni.api import MuOmni, check_replaceable

    check_replaceable(out.resolve())
    model = MuOmni.from_pretrained(run, device="cpu", dtype=getattr(torch, dtype) if dtype else None)
    model.export_hf(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    if as_json:
        print(json.dumps({"out": str(out), "format": format.value, "dtype": str(model.dtype)[6:], "bytes": size}))
    else:
        print(f"{out}: Qwen3 folder, {model.num_parameters():,} parameters in {str(model.dtype)[6:]}, {size:,} bytes")
        if model.tokenizer is None:
            print("It has no tokenizer: the run has none.")
