"""`muomni bench`: techniques and peers, side by side on this machine."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from muomni.cli.bench import report as bench_report
from muomni.cli.common.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from muomni.bench.training.compare import Measured
    from muomni.bench.training.media_overhead import MediaCost
    from muomni.bench.training.techniques import OnOff
    from muomni.config import ThinkerConfig
    from muomni.config.model import PresetName


def train(
    ctx: typer.Context,
    target: bench_report.Model = None,
    full: bench_report.Full = None,
    out: bench_report.Out = None,
    repeat: bench_report.Repeat = 1,
    shape: Annotated[str, typer.Option(help="nano, tiny, small, base, 12m or 100m.")] = "tiny",
    batch_size: Annotated[int, typer.Option(min=4, help="Rows in a step.")] = 4,
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens in a row.")] = 512,
    rounds: bench_report.Rounds = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a turn.")] = 2,
    techniques: Annotated[bool, typer.Option(help="Measure each technique on against off.")] = True,
    media: Annotated[bool, typer.Option(help="Measure what pictures and sounds cost beside their FLOPs.")] = True,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure transformers' own Qwen3.")] = False,
    as_json: bench_report.OnlyJson = False,
) -> None:
    """Training steps, each technique on against off. With MODEL, --quick or --full a report as `bench all` makes it.

    Otherwise tables of one shape: all techniques, rows with media against text, and with --peers transformers.
    Cases run in processes of their own and take turns. Ends with one JSON line.
    Example: muomni bench train --shape 12m --batch-size 8 --peers
    """
    if bench_report.wants_report(ctx, target is not None or full is not None):
        return bench_report.report(("train",), "train", target, full, out, repeat)
    from muomni.bench.training.compare import compare
    from muomni.bench.training.media_overhead import measure_media
    from muomni.bench.training.techniques import measure_techniques

    common = {"thinker": shape_of(shape), "batch_size": batch_size, "seq_len": seq_len}
    on_update = bench_report.show_progress()
    result: dict[str, Any] = {"shape": shape, "batch_size": batch_size, "seq_len": seq_len}
    title = "" if as_json else f"{shape}, {batch_size} × {seq_len} tokens"
    if techniques:
        pairs = list(measure_techniques(common, rounds, steps, on_update))
        result["techniques"] = [pair.as_dict() for pair in pairs]
        if title:
            _print_techniques(title, pairs)
    if media:
        on_update("media")

        def measure(encoders: tuple[Any, Any]) -> "list[MediaCost]":
            return measure_media(common, *encoders, rounds, steps, on_update)

        result["media"] = _media(shape, measure, title)
    for precision in ("fp32", "bf16") if peers else ():
        measured = compare(_peer_cases(common, precision), rounds, steps, say=on_update)
        # Peers draw their weights in their own way, so gradients are not compared.
        cases = [{key: value for key, value in case.as_dict().items() if "gradient" not in key} for case in measured]
        result[f"peers {precision}"] = cases
        if title:
            _print_peers(title, measured)
    print_json(result)


def _media(shape: str, measure: "Callable[[tuple[Any, Any]], list[MediaCost]]", title: str) -> Any:
    """The measurements of rows with media, or why there are none; printed where there is a title."""
    from muomni.config import encoder_configs
    from muomni.errors import ConfigError

    try:
        costs = measure(encoder_configs(cast("PresetName", shape)))
    except ConfigError as error:
        if title:
            bench_report.print_remarks({"media": str(error)}, noise="")
        return {"not_measured": str(error)}
    if title:
        _print_media(title, costs)
    return [cost.as_dict() for cost in costs]


def shape_of(name: str) -> "ThinkerConfig":
    """The Thinker of a preset.

    Raises:
        UserError: there is none.
    """
    from muomni.config import PRESET_NAMES, preset
    from muomni.errors import UserError

    if name not in PRESET_NAMES:
        raise UserError(f"--shape {name}: there are {', '.join(PRESET_NAMES)}")
    return preset(name).thinker


def _peer_cases(common: dict[str, Any], precision: str) -> list[Any]:
    """The first is what the others are compared with: in bf16 transformers at its best, compiled."""
    from muomni.bench.training.case import TrainCase

    def case(name: str, **more: object) -> TrainCase:
        return TrainCase.model_validate({"name": name, "precision": precision, **common, **more})

    transformers = {"implementation": "transformers", "allocator": "system"}
    plain = [case(f"transformers {precision}", **transformers), case(f"muomni {precision}")]
    if precision == "fp32":
        return plain
    compiled = [
        case(f"transformers {precision} compile", **transformers, compile="full"),
        # Not what its users have: shows how much of the difference is the allocator's.
        case(f"transformers {precision} compile, freed memory kept", implementation="transformers", compile="full"),
    ]
    ours = [
        case(f"muomni {precision} compile", compile="blocks"),
        case(f"muomni {precision} compile, selective", compile="blocks", checkpointing="selective"),
    ]
    return [*compiled, *plain, *ours]


_RATIO = "{0.ratio:.2f}× ({0.ratio_low:.2f}–{0.ratio_high:.2f})"


def _print_peers(title: str, rows: "list[Measured]") -> None:
    columns = {
        "case": "{0.name}",
        "tokens/s": "{0.tokens_per_s:,.0f}",
        "quartiles": "{0.low:,.0f}–{0.high:,.0f}",
        "peak MiB": "{0.peak_mib:,.0f}",
        "first step s": "{0.first_step_s:.1f}",
        f"speed / {rows[0].name}": _RATIO,
        "memory": "{0.memory_ratio:.2f}×",
        "verdict": "{0.verdict}",
    }
    bench_report.print_measured(title, rows, columns, left=("case", "verdict"))


def _print_techniques(title: str, rows: "list[OnOff]") -> None:
    columns = {
        "technique": "{0.technique.title}",
        "off tok/s": "{0.off.tokens_per_s:,.0f}",
        "on tok/s": "{0.on.tokens_per_s:,.0f}",
        "speed": _RATIO.replace("0.", "0.on."),
        "memory": "{0.on.memory_ratio:.2f}×",
        "equivalence": "{0.equivalence}",
        "first step s": "{0.off.first_step_s:.1f} → {0.on.first_step_s:.1f}",
        "verdict": "{0.on.verdict}",
    }
    measured = [
        SimpleNamespace(**vars(row), equivalence=_equivalence(row.technique.equivalence, row.on))
        for row in rows
        if row.on is not None
    ]
    bench_report.print_measured(f"{title}: on against off", measured, columns, left=("technique", "verdict"))
    bench_report.print_remarks({row.technique.title: row.not_measured for row in rows if row.not_measured}, noise="")


def _print_media(title: str, rows: "list[MediaCost]") -> None:
    columns = {
        "rows": "{0.measured.name}",
        "tokens/s": "{0.measured.tokens_per_s:,.0f}",
        "quartiles": "{0.measured.low:,.0f}–{0.measured.high:,.0f}",
        "peak MiB": "{0.measured.peak_mib:,.0f}",
        "time / text": "{0.slowdown[0]:.2f}× ({0.slowdown[1]:.2f}–{0.slowdown[2]:.2f})",
        "FLOPs / text": "{0.explained:.2f}×",
        "verdict": "{0.verdict}",
    }
    bench_report.print_measured(f"{title}: media in the place of text", rows, columns, left=("rows", "verdict"))


def _equivalence(claim: str, on: "Measured") -> str:
    """The class and the measured value: of what steps changed where they were compared, else of the gradients."""
    of_updates = on.update_error is not None
    equal = on.updates_equal if of_updates else on.gradients_equal
    error = on.update_error if on.update_error is not None else on.gradient_error
    return f"{claim}: " + ("bit-equal" if equal else f"{error:.1e}") + (" (updates)" if of_updates else "")
