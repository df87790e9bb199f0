"""`muomni plan`: forecasts the memory of a recipe, and says which of its settings fit."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, print_table
from muomni.config import load_recipe
from muomni.errors import ConfigError, UserError

if TYPE_CHECKING:
    from muomni.training.estimate import Estimate

_CATEGORIES = {
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
        str | None, typer.Option(help="Available memory, for example 12GB; default: what is free on the device.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, which need not be here; the recipe's.")] = None,
    changes: options.Set = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="Time the best few where the device is here, up to about two minutes."
        ),
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Forecast the memory of training and inference without allocating it, and say which settings fit.

    The effective batch, the learning rate and what is learnt stay as they are; only how a step is cut and computed
    changes. Exit code 2 where nothing fits. Speeds are modelled, and those of the best few measured.

    Example: muomni plan text-tiny --memory 2GB --set data.train=book.txt
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: memory is forecast for cpu and cuda")
    stage = load_recipe(recipe, _with_data(changes or []))
    if stage.codec is not None:
        raise ConfigError("codec: memory is forecast for models, not for codecs")
    from muomni.training.estimate import estimate
    from muomni.training.forecast.search import parse_memory, words

    show = not as_json and sys.stderr.isatty()

    def on_update(text: str) -> None:
        if show:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    available = None if memory is None else parse_memory(memory)
    result = estimate(stage, device, available, measure, on_update)
    on_update("")
    if as_json:
        print_json(result.values)
    else:
        _print(result)
    if result.best is None:
        least = min(result.options, key=lambda option: option.forecast.peak)
        raise UserError(
            f"{recipe} does not fit in {words(result.memory)}: with micro-batches of {least.step.micro_batch} and "
            f"checkpointing {least.step.checkpointing}, the least possible, it takes about "
            f"{words(least.forecast.peak)}. A smaller model.preset, tokenizer.vocab_size or data.seq_len takes less"
        )


def _with_data(changes: list[str]) -> list[str]:
    """Bundled recipes leave the data to the user; a forecast does not read it."""
    given = any(change.startswith("data.train") for change in changes)
    return changes if given else ['data.train=["the data are not read"]', *changes]


def _print(estimate: "Estimate") -> None:
    from muomni.training.forecast.accuracy import in_words
    from muomni.training.forecast.search import words

    setup, step, values = estimate.setup, estimate.setup.step, estimate.values
    print(
        f"Training on {setup.device} in {step.precision}, {step.micro_batch} × {setup.seq_len} tokens, "
        f"{step.accumulation} micro-batches a step, checkpointing {step.checkpointing}, {setup.optimizer.name}: "
        f"about {values['training']['peak_mib']:,.0f} MiB at the peak"
    )
    for name, text in _CATEGORIES.items():
        if size := values["training"][f"{name}_mib"]:
            print(f"  {text:<46}{size:>10,.0f}")
    headings = ("micro-batch", "× times", "checkpointing", "compile", "MiB", "fits", "s/step, modelled", "measured")
    rows = [
        (
            str(option.step.micro_batch),
            str(option.step.accumulation),
            option.step.checkpointing,
            option.step.compile,
            f"{option.forecast.peak / 2**20:,.0f}",
            "yes" if known["fits"] else "no",
            f"{option.seconds:.3g}",
            f"{known['seconds_measured']:.3g}" if "seconds_measured" in known else "",
        )
        for option, known in zip(estimate.options, values["options"], strict=True)
    ]
    title = f"in {words(estimate.memory)} ({estimate.source})"
    print_table(headings, rows, title=title, left=("checkpointing", "compile", "fits"))
    lines = ["Inference, weights and KV cache (besides the process):"]
    for name, size in values["inference"].items():
        lines.append(f"  {name.removesuffix('_mib').replace('_', ' '):<46}{size:>10,.1f} MiB")
    if values["uncertainty"] is not None:
        lines.append(f"Uncertainty of the forecast: {values['uncertainty']}.")
    lines.append(f"{in_words(values['past_errors']).capitalize()}.")
    lines += [f"Not modelled: {text}" for text in values["not_modelled"]]
    if estimate.best is not None:
        lines += ["", _fastest(estimate), json.dumps(estimate.best.step.fragment(), indent=2)]
    print("\n".join(lines))


def _fastest(estimate: "Estimate") -> str:
    assert estimate.best is not None
    if estimate.seconds:
        times = sorted(estimate.seconds[estimate.best.step])
        measured = f"{times[len(times) // 2]:.3g} s/step ({times[0]:.3g} to {times[-1]:.3g})"
        return (
            f"Fastest that fits, measured: {measured}; of those as\nfast within the noise, the one with least memory:"
        )
    source = "measured on this device" if estimate.rate_measured else "assumed: the device is not here"
    return (
        f"Fastest that fits, modelled by operations at {estimate.rate / 1e9:,.0f} GFLOP/s ({source});\n"
        f"no steps were measured: {estimate.not_measured}:"
    )
