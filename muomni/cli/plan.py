"""`muomni plan`: what a recipe will take of memory, and which of its settings fit."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muomni.cli.common.terminal import wide_console
from muomni.config import load_recipe
from muomni.errors import ConfigError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from muomni.bench.training.step_configs import Speed
    from muomni.config import Recipe
    from muomni.train.forecast.memory import Setup
    from muomni.train.forecast.search import Option

_SAID = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "weight_copies": "weights in low precision",
    "loss": "blocks of the loss",
    "temporary": "in use in the backward pass or the optimizer",
    "kernels": "kept by operations for shapes they met",
    "gaps": "gaps between blocks",
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
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="Time the best few where the device is here, up to about two minutes."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print only one JSON line.")] = False,
) -> None:
    """Forecast the memory of training and inference without taking it, and say which settings fit.

    The effective batch, the learning rate and what is learnt stay as they are; what changes is how a step is cut and
    computed. Ends with exit code 2 where nothing fits. Speeds are modelled, and of the best few measured.

    Example: muomni plan text-tiny --memory 2GB --set data.train=book.txt
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: memory is forecast for cpu and cuda")
    stage = load_recipe(recipe, _with_data(changes or []))
    if stage.codec is not None:
        raise ConfigError("codec: memory is forecast for models; training a codec is not modelled yet")
    from muomni.train.forecast.search import parse_memory, words

    asked = None if memory is None else parse_memory(memory)
    say = _silent if as_json else _say
    plan = _plan(stage, device, asked, measure, say)
    if as_json:
        print(json.dumps(plan.result))
    else:
        _print(plan)
    if plan.best is None:
        least = min(plan.found, key=lambda option: option.forecast.peak)
        way = f"micro-batches of {least.setup.micro_batch} and checkpointing {least.setup.checkpointing}"
        raise UserError(
            f"{recipe} does not fit in {words(plan.room)}: with {way}, the least there is, it takes about "
            f"{words(least.forecast.peak)}. A smaller model.preset, tokenizer.vocab_size or data.seq_len takes less"
        )
    if not as_json:
        _print_fastest(plan, plan.best)


@dataclass(frozen=True)
class _Plan:
    """What was found.

    Attributes:
        setup: of the recipe as it is.
        room, whence: bytes that there are, and how that is known.
        found: every way to take the steps; `best` is the one to take, None where none fits.
        speeds: measured, by `bench.training.step_configs.name_of`; `unmeasured` says why there are none.
        result: all of it for `--json`.
    """

    setup: "Setup"
    room: int
    whence: str
    found: "list[Option]"
    best: "Option | None"
    speeds: "dict[str, Speed]"
    unmeasured: str | None
    result: dict[str, Any]


def _plan(stage: "Recipe", device: str | None, asked: int | None, measure: bool, say: "Callable[[str], None]") -> _Plan:
    import torch

    from muomni.bench.training import step_configs
    from muomni.train.forecast.accuracy import past_errors
    from muomni.train.forecast.memory import forecast, inference_memory, setup_of, uncertainty
    from muomni.train.forecast.search import fastest, options, step_seconds

    setup = setup_of(stage, device=device)
    room, whence = _room(setup, asked)
    compiles = stage.compile != "off" and _compiler(setup)
    baselines = [_baseline(setup, compiled) for compiled in ((False, True) if compiles else (False,))]
    rate, measured = _rate(setup)
    own = forecast(setup).with_baseline(baselines[-1 if setup.compiled else 0])
    found = list(options(setup, baselines, rate, say))
    best = fastest(found, room)
    fitting = [option for option in found if option.fits(room)]
    speeds, unmeasured = _speeds(fitting, setup, measure, say)
    if speeds:
        best = step_configs.fastest(fitting, speeds)
    result: dict[str, Any] = {
        "device": setup.device,
        "precision": setup.precision,
        "memory_mib": round(room / 2**20, 1),
        "rate_flops": rate,
        "rate_measured": measured,
        "training": own.as_dict(),
        "step_seconds_modelled": step_seconds(setup, rate),
        "uncertainty": uncertainty(setup),
        "past_errors": past_errors(torch.device(setup.device)) if _is_here(setup) else [],
        "inference": inference_memory(setup.config),
        "not_modelled": _not_modelled(stage),
        "not_measured": unmeasured,
        "options": [
            option.as_dict()
            | {"fits": option.fits(room)}
            | (
                {"seconds_measured": one.seconds}
                if (one := speeds.get(step_configs.name_of(option))) is not None
                else {}
            )
            for option in found
        ],
        "fastest": None if best is None else best.fragment,
    }
    return _Plan(setup, room, whence, found, best, speeds, unmeasured, result)


def _with_data(changes: list[str]) -> list[str]:
    """Bundled recipes leave the data to the user; a forecast does not read it."""
    given = any(change.startswith("data.train") for change in changes)
    return changes if given else ['data.train=["the data are not read"]', *changes]


def _is_here(setup: "Setup") -> bool:
    import torch

    return setup.device != "cuda" or torch.cuda.is_available()


def _room(setup: "Setup", asked: int | None) -> tuple[int, str]:
    """Bytes there are, and where that is known from."""
    if asked is not None:
        return asked, "as asked"
    import torch

    from muomni.accel.device import free_memory

    if not _is_here(setup):
        raise UserError("no GPU is here whose memory could be read: say how much there is with --memory")
    return free_memory(torch.device(setup.device)), "free now"


def _baseline(setup: "Setup", compiled: bool) -> int:
    from muomni.train.process_overhead import process_baseline

    return process_baseline(setup.precision, setup.optimizer.name, compiled) if setup.device == "cpu" else 0


def _compiler(setup: "Setup") -> bool:
    import torch

    from muomni.accel.compile.blocks import what_is_missing

    if not _is_here(setup):
        return True  # it is known of that machine as little as the rest
    return what_is_missing(torch.device(setup.device)) is None


def _rate(setup: "Setup") -> tuple[float, bool]:
    """Floating-point operations a second of a matrix product, and whether that was measured."""
    import torch

    from muomni.train.forecast.search import ASSUMED_RATE, measure_rate

    if not _is_here(setup):
        return ASSUMED_RATE, False
    return measure_rate(torch.device(setup.device), setup.precision), True


def _speeds(
    fitting: "list[Option]", setup: "Setup", asked: bool, say: "Callable[[str], None]"
) -> "tuple[dict[str, Speed], str | None]":
    """What steps of the best few take here, or why that was not measured."""
    from muomni.bench.training.step_configs import candidates, measure, why_not

    if not asked:
        return {}, "as asked"
    if not _is_here(setup):
        return {}, "the device is not here"
    chosen = candidates(fitting)
    reason = why_not(chosen)
    return ({}, reason) if reason is not None else (measure(chosen, say), None)


def _not_modelled(stage: Any) -> list[str]:
    found = ["what reading the data and training the tokenizer take besides"]
    for name, what in (("vision", "pictures"), ("audio", "sounds"), ("talker", "speech")):
        if getattr(stage.model, name, None) is not None:
            found.append(f"activations of {what}: only weights, gradients and optimizer state of that part are here")
    if stage.compile != "off":
        found.append("compiled blocks: taken to keep what selective checkpointing keeps")
    if stage.parallel == "fsdp":
        found.append("fsdp: the figures are those of one process that holds everything")
    return found


def _silent(_: str) -> None:
    """Where only JSON is wanted."""


def _say(text: str) -> None:
    import sys

    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _print(plan: _Plan) -> None:
    from rich import box
    from rich.table import Table

    from muomni.bench.training.step_configs import name_of
    from muomni.train.forecast.accuracy import in_words
    from muomni.train.forecast.search import words

    _say("")
    console = wide_console()
    setup, result, room = plan.setup, plan.result, plan.room
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"in {words(room)} ({plan.whence})", title_justify="left")
    for heading in (
        "micro-batch",
        "× times",
        "checkpointing",
        "compile",
        "MiB",
        "fits",
        "s/step, modelled",
        "measured",
    ):
        table.add_column(heading, justify="right" if heading not in ("checkpointing", "compile", "fits") else "left")
    for option in plan.found:
        s = option.setup
        table.add_row(
            str(s.micro_batch),
            str(s.accumulation),
            s.checkpointing,
            "blocks" if s.compiled else "off",
            f"{option.forecast.peak / 2**20:,.0f}",
            "yes" if option.fits(room) else "no",
            f"{option.seconds:.3g}",
            f"{plan.speeds[name_of(option)].seconds:.3g}" if name_of(option) in plan.speeds else "",
        )
    console.print(table)
    console.print("Inference, weights and keys and values (besides the process):", highlight=False)
    for text, size in result["inference"].items():
        console.print(f"  {text.removesuffix('_mib').replace('_', ' '):<46}{size:>10,.1f} MiB", highlight=False)
    if result["uncertainty"] is not None:
        console.print(f"Uncertainty of the forecast: {result['uncertainty']}.", highlight=False)
    console.print(f"{in_words(result['past_errors']).capitalize()}.", highlight=False)
    for text in result["not_modelled"]:
        console.print(f"Not modelled: {text}", highlight=False)


def _print_fastest(plan: _Plan, best: "Option") -> None:
    from muomni.bench.training.step_configs import name_of

    if plan.speeds:
        one = plan.speeds[name_of(best)]
        print(f"\nFastest that fits, measured: {one.seconds:.3g} s/step ({one.low:.3g} to {one.high:.3g}); of those as")
        print("fast within the noise, the one with least memory:")
    else:
        how = "measured on this device" if plan.result["rate_measured"] else "assumed: the device is not here"
        rate = plan.result["rate_flops"] / 1e9
        print(f"\nFastest that fits, modelled by operations at {rate:,.0f} GFLOP/s ({how});")
        print(f"no steps were measured: {plan.unmeasured}:")
    print(json.dumps(best.fragment, indent=2))
