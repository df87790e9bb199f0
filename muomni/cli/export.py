"""`muomni export`: a run as a folder or file that other programs load."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, writing
from muomni.errors import UserError
from muomni.progress import progress_bar

# What a GGUF file calls them; llama.cpp's own int8 comes only there.
_GGUF = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "q8_0": "q8_0"}


def command(
    run: options.Run,
    out: Annotated[Path, typer.Option(metavar="PATH", help="The folder (hf) or file (gguf) to write.")],
    format: Annotated[  # noqa: A002  # the option's name
        Literal["hf", "gguf"],
        typer.Option(help="hf: a Qwen3 folder for transformers, vLLM and others; gguf: a file for llama.cpp."),
    ] = "hf",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "q8_0"] | None,
        typer.Option(help="Of the weights; the run's own when not given. q8_0, int8 in blocks of 32, is for gguf."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is already there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a model in the form of another program; int8 weights become floating point again.

    Example: muomni export runs/demo --format gguf --dtype q8_0 --out demo.gguf
    """
    if format == "gguf":
        if out.is_dir():
            raise UserError(f"{out} is a folder: --format gguf writes a file, for example {out / 'model.gguf'}")
        if out.exists() and not force:
            raise UserError(f"{out} is already there: give a new name, or --force to replace it")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    elif dtype == "q8_0":
        raise UserError("--dtype q8_0 is for --format gguf: a Qwen3 folder takes float32, bfloat16 or float16")
    elif out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty: give a new folder, or --force to replace the model in it")

    import torch

    from muomni.api.model import MuOmni
    from muomni.formats.pretrained import check_replaceable

    if format == "hf":
        check_replaceable(out.resolve())
        model = MuOmni.from_pretrained(run, device="cpu", dtype=getattr(torch, dtype) if dtype else None)
        model.export_hf(out)
        size, stored = sum(path.stat().st_size for path in out.iterdir()), str(model.dtype)[6:]
    else:
        model = MuOmni.from_pretrained(run, device="cpu")
        stored = dtype or str(model.dtype)[6:]
        with progress_bar("writing", len(model.state_dict())) as bar:
            model.export_gguf(out, cast("Any", _GGUF[stored]), lambda _: bar.advance())
        size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "format": format, "dtype": stored, "bytes": size})
    else:
        what = "Qwen3 folder" if format == "hf" else "GGUF file"
        print(f"{out}: {what}, {model.num_parameters(model.thinker):,} parameters in {stored}, {size:,} bytes")
        if model.vision is not None or model.audio is not None:
            print("It is the Thinker alone: the encoders stay behind, so it neither sees nor hears.")
        if model.tokenizer is None:
            print("It has no tokenizer: the run has none.")
