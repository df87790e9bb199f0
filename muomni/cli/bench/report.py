"""`muomni bench [all|train|infer|speech] [MODEL] --quick|--full`: every technique on against off, as a report."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from muomni.cli.common.output import print_table, writing
from muomni.errors import MuOmniError, UserError

if TYPE_CHECKING:
    from muomni.accel.technique import Part
    from muomni.bench.report.report import Report

_RUNS = Path("runs")
_DEFAULT = "tiny"
# Parameters of a report, of commands that have others too.
_OPTIONS = ("target", "full", "out", "repeat")

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A run folder, or a preset with random weights (muomni config presets)."),
]
Full = Annotated[
    bool | None,
    typer.Option(
        "--full/--quick", help="Quick: within three minutes on two cores with tiny. Full: all techniques, more rounds."
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="For report.json and report.html; runs/bench-MODEL if none.")
]
Rounds = Annotated[int, typer.Option(min=2, help="Turns each case takes.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of every case; default: torch's choice.")]
OnlyJson = Annotated[bool, typer.Option("--json", help="Print only the JSON line.")]
Repeat = Annotated[int, typer.Option(min=1, help="Measure this many times, and fail where verdicts contradict.")]


class BenchGroup(TyperGroup):
    """`muomni bench`, also with a model or an option next, is `muomni bench all`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `all` in front of what names no subcommand."""
        first = args[0] if args else ""
        if first not in self.commands and first not in ("-h", "--help"):
            args = ["all", *args]
        return super().parse_args(ctx, args)


def everything(model: Model = None, full: Full = None, out: Out = None, repeat: Repeat = 1) -> None:
    """Each technique of training, inference and speech on against off, on this machine.

    Writes report.json, and report.html with plots; auto settings leave off what lost from then on.
    Example: muomni bench runs/demo --quick
    """
    report(("train", "infer", "speech"), "all", model, full, out, repeat)


def claims(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="report.json files or their folders.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here; printed when left out.")] = None,
) -> None:
    """What is usually claimed of each technique beside what reports measured, as Markdown.

    Example: muomni bench claims runs/bench-tiny --out docs/claims.md
    """
    from muomni.bench.report.claims import claims as written
    from muomni.bench.report.report import load_report

    text = written([load_report(path) for path in reports])
    if out is None:
        print(text, end="")
        return
    with writing(out):
        out.write_text(text, encoding="utf-8")


def wants_report(ctx: typer.Context, wanted: bool, common: Sequence[str] = ()) -> bool:
    """Whether a command that makes reports and tables is to make a report: `wanted`.

    Args:
        ctx: of the command.
        wanted: as its options say.
        common: names of further parameters that both take.

    Raises:
        UserError: an option was given that does not apply.
    """
    for param in ctx.command.params:
        name, source = param.name or "", ctx.get_parameter_source(param.name or "")
        given = source is not None and source.name == "COMMANDLINE" and name not in common
        if given and (name in _OPTIONS) != wanted:
            raise UserError(
                f"{param.opts[0]} does not go together with a report: drop it, or drop MODEL, --quick and --full"
                if wanted
                else f"{param.opts[0]} is for a report: add --quick or --full"
            )
    return wanted


def report(
    parts: "tuple[Part, ...]", name: str, model: str | None, full: bool | None, out: Path | None, repeat: int
) -> None:
    """Measures, prints the table, and writes the files.

    Raises:
        UserError: there is no such model, or it cannot be measured here.
        MuOmniError: repeated measurements contradict one another.
    """
    from muomni.accel.measurements.statistics import contradictions
    from muomni.bench.report.recommendations import remember
    from muomni.bench.report.sections import FULL, QUICK
    from muomni.bench.suite import Asked, find_target, make_folder, run, write

    model = model or _DEFAULT
    folder = out or _RUNS / f"bench-{Path(model).name or _DEFAULT}"
    words = ["muomni", "bench", name, model, "--full" if full else "--quick"]
    asked = Asked(model, parts, FULL if full else QUICK, shlex.join(words))
    target = find_target(model)  # mistakes are told before anything is measured
    make_folder(folder)

    reports, on_update = [], show_progress()
    for number in range(repeat):
        reports.append(run(asked, on_update))
        paths = write(reports[-1], folder if repeat == 1 else folder / str(number + 1))
        print_report(reports[-1])
        print("written: " + ", ".join(str(path) for path in paths))
    against = contradictions([each.verdicts for each in reports])
    if against:
        raise MuOmniError(f"{repeat} measurements contradict one another: {'; '.join(against)}")
    lost = remember(reports[-1], target)
    if lost:
        print(f"auto settings leave off here, for this model, from now on: {', '.join(lost)}")
    if repeat > 1:
        print(f"{repeat} measurements agree: no technique is on in one and off in another")


def show_progress() -> Callable[[str], None]:
    """Prints what is going on to standard error."""
    from rich.console import Console

    return partial(Console(stderr=True).print, highlight=False, markup=False, style="dim")


def print_report(report: "Report") -> None:
    """The table of all techniques, and how far it can be trusted."""
    from muomni.bench.report.html import cells

    names = ("technique", "tokens/s", "speed", "memory", "results", "usually claimed", "verdict here")
    rows = []
    for row in report.rows:
        shown, verdict = cells(row), f"{row.verdict}: {row.reason}"
        rows.append((row.technique, shown.speeds, shown.ratio, shown.memory, shown.results, row.claim, verdict))
    title = f"{report.model.name} on {report.machine.words}: on against off ({report.mode}, {report.seconds:.0f} s)"
    print_table(names, rows, title=title, left=names)
    lines = [f"A difference counts beyond {report.margin:.0%}."]
    lines += [f"for a recipe: {key} = {value}" for key, value in report.recipe.items()]
    print_remarks({}, "; ".join(report.noise), [*lines, *report.advice])


def print_measured(title: str, rows: Iterable[object], columns: Mapping[str, str], left: Sequence[str]) -> None:
    """A table of measurements.

    Args:
        title: above it.
        rows: with attributes.
        columns: headings, and each cell as `str.format` writes it of a row.
        left: headings of the columns that are not numbers.
    """
    cells = [[_cell(form, row) for form in columns.values()] for row in rows]
    print_table(list(columns), cells, title=title, left=left)


def _cell(form: str, row: object) -> str:
    """What `str.format` writes of a row; a dash where a value is None."""
    fields = Formatter()
    values = [fields.get_field(name, (row,), {})[0] for _, name, _, _ in fields.parse(form) if name]
    return "–" if None in values else form.format(row)


def print_remarks(unmeasured: Mapping[str, str], noise: str, lines: Sequence[str] = ()) -> None:
    """Lines below a table: what could not be measured and why, and how far the measurements can be trusted."""
    for name, reason in unmeasured.items():
        print(f"{name}: not measured, {reason}")
    if noise:
        print(f"A noisy machine: {noise}. Small differences mean nothing here.")
    print("\n".join(lines))
