"""`muomni bench`: techniques and peers, side by side on this machine."""

import json
from typing import Annotated

import typer

command = typer.Typer(no_args_is_help=True, help="Measure on this machine. Example: muomni bench train --shape tiny")


@command.command("train")
def train(
    shape: Annotated[str, typer.Option(help="nano, tiny, small, base, 12m or 100m.")] = "tiny",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 4,
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens in a row.")] = 512,
    rounds: Annotated[int, typer.Option(min=2, help="Turns each case takes.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a turn.")] = 2,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure transformers' own Qwen3.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Training steps: μOmni in fp32 and bf16, with --peers beside transformers.

    Ends with one JSON line.
    Example: muomni bench train --shape 12m --batch-size 8 --peers
    """
    from rich.console import Console

    from muomni.bench.cases import SHAPES, TrainCase
    from muomni.bench.compare import compare
    from muomni.config import PRESET_NAMES, preset
    from muomni.errors import UserError

    shapes = {name: preset(name).thinker for name in PRESET_NAMES} | SHAPES
    if shape not in shapes:
        raise UserError(f"--shape {shape}: there are {', '.join(shapes)}")
    console = Console(stderr=True)

    def case(name: str, **more: object) -> TrainCase:
        common = {"thinker": shapes[shape], "batch_size": batch_size, "seq_len": seq_len}
        return TrainCase.model_validate({"name": name, **common, **more})

    cases = [case("muomni fp32"), case("muomni bf16", precision="bf16")]
    if peers:
        cases = [
            case("transformers fp32", implementation="transformers"),
            case("transformers bf16", implementation="transformers", precision="bf16"),
            case("transformers bf16 compile", implementation="transformers", precision="bf16", compile=True),
            *cases,
        ]
    measured = compare(cases, rounds, steps, say=lambda text: console.print(text, highlight=False))
    if not as_json:
        print_table(f"{shape}, {batch_size} × {seq_len} tokens", [m.as_dict() for m in measured], cases[0].name)
    print(
        json.dumps(
            {"shape": shape, "batch_size": batch_size, "seq_len": seq_len, "cases": [m.as_dict() for m in measured]}
        )
    )


def print_table(title: str, rows: list[dict[str, object]], baseline: str) -> None:
    """Prints measured cases as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in (
        "case",
        "tokens/s",
        "quartiles",
        "peak MiB",
        "first step s",
        f"speed / {baseline}",
        "memory",
        "verdict",
    ):
        table.add_column(column, justify="left" if column in ("case", "verdict") else "right")
    for row in rows:
        table.add_row(
            str(row["name"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{row['low']:,.0f}–{row['high']:,.0f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['first_step_s']:.1f}",
            f"{row['ratio']:.2f}× ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            f"{row['memory_ratio']:.2f}×",
            str(row["verdict"]),
        )
    Console().print(table)
