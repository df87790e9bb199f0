"""`muomni data`: looking at data before a run does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.data.check import Findings

command = typer.Typer(
    help="Data for training: read everything once and say what is wrong.\n\n"
    "Example: muomni data check train.jsonl --out report",
    no_args_is_help=True,
)


@command.callback()
def _group() -> None:
    pass


@command.command()
def check(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="JSON lines, also .gz, or Parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Write problems.json, histogram.png and contact_sheet.png to this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Sounds beyond this are too long.")] = 300.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
) -> None:
    """Read every picture and sound that manifests name, and say what is wrong.

    Found are: rows that cannot be used, missing, broken and too long media (exit code 1), and silent, blank,
    unpaired and duplicate media and files of an archive that no row names, which are worth a look.

    Example: muomni data check train.jsonl val.jsonl --out report
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from muomni.data.check import check_manifests

    columns = (SpinnerColumn(), TextColumn("reading rows"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        found = check_manifests(
            manifests, max_seconds=max_seconds, workers=workers, report=lambda rows: progress.advance(task, rows)
        )
    if out is not None:
        _write(found, out)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print(found)
    if found.failed:
        raise typer.Exit(1)


def _write(found: "Findings", out: Path) -> None:
    from muomni.data.check_plots import plot_contact_sheet, plot_histograms
    from muomni.files import write_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "problems.json", found.to_dict())
        plot_histograms(found, out / "histogram.png")
        plot_contact_sheet(found, out / "contact_sheet.png")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def _print(found: "Findings") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from muomni.data.check import KINDS

    console = Console()
    minutes = sum(found.seconds) / 60
    console.print(
        f"{found.rows:,} rows, {found.pictures:,} pictures, {found.sounds:,} sounds ({minutes:,.1f} min), "
        f"{sum(found.tokens):,} media tokens"
    )
    table = Table("problem", "count", "first", box=box.SIMPLE_HEAD, pad_edge=False)
    for kind in KINDS:
        problems = [problem for problem in found.problems if problem.kind == kind]
        if problems:
            table.add_row(kind, f"{len(problems):,}", escape(f"{problems[0].where}: {problems[0].reason}"))
    console.print(table if found.problems else "nothing is wrong")
