"""`muomni plan`: what a recipe will take of memory, and which of its settings fit."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.config import load_recipe
from muomni.errors import ConfigError, UserError

if TYPE_CHECKING:
    from muomni.train.fitting import Option
    from muomni.train.forecast import Setup

_SAID = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "weight_copies": "weights in low precision",
    "loss": "blocks of the loss",
    "temporary": "in use in the backward pass or the optimizer",
    "kernels": "kept by operations for shapes they met",
    "gaps": "gaps in the heap",
    "baseline": "the process without a model",
}


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    memory: Annotated[
        str | None, typer.Option(help="What there is, for example 12GB; what is free on the device when left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, which need not be here; the recipe's.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only one JSON line.")] = False,
) -> None:
    """Forecast the memory of training and inference without taking it, and say which settings fit.

    The effective batch, the learning rate and what is learnt stay as they are; what changes is how a step is cut and
    computed. Ends with exit code 2 where nothing fits. Speeds are modelled, not measured.

    Example: muomni plan text-tiny --memory 2GB --set data.train=book.txt
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: memory is forecast for cpu and cuda")
    stage = load_recipe(recipe, _with_data(changes or []))
    if stage.codec is not None:
        raise ConfigError("codec: memory is forecast for models; training a codec is not modelled yet")
    from muomni.train.fitting import fastest, options, parse_memory, step_seconds, words
    from muomni.train.forecast import forecast, inference_memory, setup_of

    asked = None if memory is None else parse_memory(memory)
    setup = setup_of(stage, device=device)
    room, whence = _room(setup, asked)
    baseline = _baseline(setup)
    rate, measured = _rate(setup)
    own = forecast(setup).with_baseline(baseline)
    say = None if as_json else _say
    compiled = stage.compile != "off" and _compiler(setup)
    found = list(options(setup, baseline, rate, compiled, say or _silent))
    best = fastest(found, room)
    result: dict[str, Any] = {
        "device": setup.device,
        "precision": setup.precision,
        "memory_mib": round(room / 2**20, 1),
        "rate_flops": rate,
        "rate_measured": measured,
        "training": own.as_dict(),
        "step_seconds_modelled": step_seconds(setup, rate),
        "inference": inference_memory(setup.config),
        "not_modelled": _not_modelled(stage),
        "options": [option.as_dict() | {"fits": option.fits(room)} for option in found],
        "fastest": None if best is None else best.fragment,
    }
    if as_json:
        print(json.dumps(result))
    else:
        _print(setup, result, found, room, whence)
    if best is None:
        least = min(found, key=lambda option: option.forecast.peak)
        way = f"micro-batches of {least.setup.micro_batch} and checkpointing {least.setup.checkpointing}"
        raise UserError(
            f"{recipe} does not fit in {words(room)}: with {way}, the least there is, it takes about "
            f"{words(least.forecast.peak)}. A smaller model.preset, tokenizer.vocab_size or data.seq_len takes less"
        )
    if not as_json:
        _print_fastest(best, rate, measured)


def _with_data(changes: list[str]) -> list[str]:
    """Bundled recipes leave the data to the user; a forecast does not read it."""
    given = any(change.startswith("data.train") for change in changes)
    return changes if given else ['data.train=["the data are not read"]', *changes]


def _room(setup: "Setup", asked: int | None) -> tuple[int, str]:
    """Bytes there are, and where that is known from."""
    if asked is not None:
        return asked, "as asked"
    import torch

    from muomni.accel.device import free_memory

    if setup.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is here whose memory could be read: say how much there is with --memory")
    return free_memory(torch.device(setup.device)), "free now"


def _baseline(setup: "Setup") -> int:
    from muomni.train.baseline import process_baseline

    return process_baseline(setup.precision, setup.optimizer.name) if setup.device == "cpu" else 0


def _compiler(setup: "Setup") -> bool:
    import torch

    from muomni.accel.compile import what_is_missing

    if setup.device == "cuda" and not torch.cuda.is_available():
        return True  # it is known of that machine as little as the rest
    return what_is_missing(torch.device(setup.device)) is None


def _rate(setup: "Setup") -> tuple[float, bool]:
    """Floating-point operations a second of a matrix product, and whether that was measured."""
    import torch

    from muomni.train.fitting import ASSUMED_RATE, measure_rate

    if setup.device == "cuda" and not torch.cuda.is_available():
        return ASSUMED_RATE, False
    return measure_rate(torch.device(setup.device), setup.precision), True


def _not_modelled(stage: Any) -> list[str]:
    found = ["what reading the data and training the tokenizer take besides"]
    for name, what in (("vision", "pictures"), ("audio", "sounds"), ("talker", "speech")):
        if getattr(stage.model, name, None) is not None:
            found.append(f"activations of {what}: only weights, gradients and optimizer state of that part are here")
    if stage.compile != "off":
        found.append("compiled blocks: taken to keep what selective checkpointing keeps; the compiler is left out")
    if stage.parallel == "fsdp":
        found.append("fsdp: the figures are those of one process that holds everything")
    return found


def _silent(_: str) -> None:
    """Where only JSON is wanted."""


def _say(text: str) -> None:
    import sys

    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _print(setup: "Setup", result: dict[str, Any], found: "list[Option]", room: int, whence: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from muomni.train.fitting import words

    _say("")
    console = Console()
    training = result["training"]
    console.print(
        f"Training on {setup.device} in {setup.precision}, {setup.micro_batch} × {setup.seq_len} tokens, "
        f"{setup.accumulation} micro-batches a step, checkpointing {setup.checkpointing}, {setup.optimizer.name}: "
        f"about {training['peak_mib']:,.0f} MiB at the peak",
        highlight=False,
    )
    for name, text in _SAID.items():
        if training[f"{name}_mib"]:
            console.print(f"  {text:<46}{training[f'{name}_mib']:>10,.0f}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"in {words(room)} ({whence})", title_justify="left")
    for heading in ("micro-batch", "× times", "checkpointing", "compile", "MiB", "fits", "s/step, modelled"):
        table.add_column(heading, justify="right" if heading not in ("checkpointing", "compile", "fits") else "left")
    for option in found:
        s = option.setup
        table.add_row(
            str(s.micro_batch),
            str(s.accumulation),
            s.checkpointing,
            "blocks" if s.compiled else "off",
            f"{option.forecast.peak / 2**20:,.0f}",
            "yes" if option.fits(room) else "no",
            f"{option.seconds:.3g}",
        )
    console.print(table)
    console.print("Inference, weights and keys and values (besides the process):", highlight=False)
    for text, size in result["inference"].items():
        console.print(f"  {text.removesuffix('_mib').replace('_', ' '):<46}{size:>10,.1f} MiB", highlight=False)
    for text in result["not_modelled"]:
        console.print(f"Not modelled: {text}", highlight=False)


def _print_fastest(best: "Option", rate: float, measured: bool) -> None:
    how = "measured on this device" if measured else "assumed: the device is not here"
    print(f"\nFastest that fits, modelled by operations at {rate / 1e9:,.0f} GFLOP/s ({how}):")
    print(json.dumps(best.fragment, indent=2))
