"""`muomni bench`: techniques and peers, side by side on this machine."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from muomni.cli.bench import report as bench_report

if TYPE_CHECKING:
    from muomni.bench.training.compare import Measured
    from muomni.bench.training.media_overhead import MediaCost
    from muomni.bench.training.techniques import OnOff
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
    rounds: Annotated[int, typer.Option(min=2, help="Turns each case takes.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a turn.")] = 2,
    techniques: Annotated[bool, typer.Option(help="Measure each technique on against off.")] = True,
    media: Annotated[bool, typer.Option(help="Measure what pictures and sounds cost beside their FLOPs.")] = True,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure transformers' own Qwen3.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Training steps, each technique on against off. With MODEL, --quick or --full a report as `bench all` makes it.

    Otherwise tables of one shape: all techniques, rows with media against text, and with --peers transformers.
    Cases run in processes of their own and take turns. Ends with one JSON line.
    Example: muomni bench train --shape 12m --batch-size 8 --peers
    """
    if bench_report.wants_report(ctx, target is not None or full is not None):
        return bench_report.report(("train",), "train", target, full, out, repeat)
    from rich.console import Console

    from muomni.bench.training.compare import compare
    from muomni.bench.training.techniques import measure_techniques

    console = Console(stderr=True)
    common = {"thinker": _shape(shape), "batch_size": batch_size, "seq_len": seq_len}

    def say(text: str) -> None:
        console.print(text, highlight=False)

    result: dict[str, Any] = {"shape": shape, "batch_size": batch_size, "seq_len": seq_len}
    title = f"{shape}, {batch_size} × {seq_len} tokens"
    if techniques:
        found = list(measure_techniques(common, rounds, steps, say))
        result["techniques"] = [item.as_dict() for item in found]
        if not as_json:
            _print_techniques(title, found)
    if media:
        result["media"] = _media(shape, common, rounds, steps, say, title="" if as_json else title)
    if peers:
        for precision in ("fp32", "bf16"):
            cases = _peer_cases(common, precision)
            measured = compare(cases, rounds, steps, say=say)
            result[f"peers {precision}"] = [_without_gradients(item.as_dict()) for item in measured]
            if not as_json:
                _print_peers(title, measured)
    print(json.dumps(result))


def _media(shape: str, common: dict[str, Any], rounds: int, steps: int, say: Callable[[str], None], title: str) -> Any:
    """The figures of rows with media, or why there are none; printed where there is a title."""
    from muomni.bench.shapes import SHAPE_PRESETS
    from muomni.bench.training.media_overhead import measure_media
    from muomni.config import encoder_configs
    from muomni.errors import ConfigError

    say("media")
    try:
        encoders = encoder_configs(cast("PresetName", SHAPE_PRESETS.get(shape, shape)))
        found = measure_media(common, *encoders, rounds, steps, say)
    except ConfigError as error:
        if title:
            bench_report.print_remarks({"media": str(error)}, noise="")
        return {"not_measured": str(error)}
    if title:
        _print_media(title, found)
    return [item.as_dict() for item in found]


def _shape(name: str) -> Any:
    from muomni.bench.shapes import SHAPES
    from muomni.config import PRESET_NAMES, preset
    from muomni.errors import UserError

    shapes = {preset_name: preset(preset_name).thinker for preset_name in PRESET_NAMES} | SHAPES
    if name not in shapes:
        raise UserError(f"--shape {name}: there are {', '.join(shapes)}")
    return shapes[name]


def _without_gradients(figures: dict[str, Any]) -> dict[str, Any]:
    """Peers draw their weights in their own way, so their gradients are not compared."""
    return {key: value for key, value in figures.items() if not key.startswith("gradient")}


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


def _ratio(row: "Measured") -> str:
    return f"{row.ratio:.2f}× ({row.ratio_low:.2f}–{row.ratio_high:.2f})"


def _print_peers(title: str, rows: "list[Measured]") -> None:
    names = (
        "case",
        "tokens/s",
        "quartiles",
        "peak MiB",
        "first step s",
        f"speed / {rows[0].name}",
        "memory",
        "verdict",
    )
    cells = [
        (
            row.name,
            f"{row.tokens_per_s:,.0f}",
            f"{row.low:,.0f}–{row.high:,.0f}",
            f"{row.peak_mib:,.0f}",
            f"{row.first_step_s:.1f}",
            _ratio(row),
            f"{row.memory_ratio:.2f}×",
            row.verdict,
        )
        for row in rows
    ]
    bench_report.print_table(title, names, cells)


def _print_techniques(title: str, rows: "list[OnOff]") -> None:
    names = ("technique", "off tok/s", "on tok/s", "speed", "memory", "equivalence", "first step s", "verdict")
    cells = [
        (
            row.technique.title,
            f"{row.off.tokens_per_s:,.0f}",
            f"{row.on.tokens_per_s:,.0f}",
            _ratio(row.on),
            f"{row.on.memory_ratio:.2f}×",
            _equivalence(row.technique.equivalence, row.on),
            f"{row.off.first_step_s:.1f} → {row.on.first_step_s:.1f}",
            row.on.verdict,
        )
        for row in rows
        if row.off is not None and row.on is not None
    ]
    bench_report.print_table(f"{title}: on against off", names, cells, left=("technique", "verdict"))
    bench_report.print_remarks({row.technique.title: row.not_measured for row in rows if row.not_measured}, noise="")


def _print_media(title: str, rows: "list[MediaCost]") -> None:
    names = ("rows", "tokens/s", "quartiles", "GFLOP/s", "time / text", "FLOPs / text", "peak MiB", "verdict")
    cells = []
    for number, row in enumerate(rows):
        m = row.measured
        slowdown, least, most = row.slowdown
        cells.append(
            (
                m.name,
                f"{m.tokens_per_s:,.0f}",
                f"{m.low:,.0f}–{m.high:,.0f}",
                f"{m.tokens_per_s * m.flops_per_token / 1e9:,.0f}",
                f"{slowdown:.2f}× ({least:.2f}–{most:.2f})",
                f"{row.explained:.2f}×",
                f"{m.peak_mib:,.0f}",
                row.verdict if number else "",
            )
        )
    bench_report.print_table(f"{title}: media in the place of text", names, cells, left=("rows", "verdict"))


def _equivalence(claim: str, on: "Measured") -> str:
    """The class and the measured value: of what steps changed where they were compared, else of the gradients."""
    of_updates = on.update_error is not None
    equal = on.updates_equal if of_updates else on.gradients_equal
    error = on.update_error if on.update_error is not None else on.gradient_error
    return f"{claim}: " + ("bit-equal" if equal else f"{error:.1e}") + (" (updates)" if of_updates else "")
