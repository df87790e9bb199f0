"""`muomni bench speech`: ways to speak, side by side on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.cli.bench import report as bench_report
from muomni.cli.common import options
from muomni.errors import UserError

if TYPE_CHECKING:
    from muomni.bench.speech import SpeakingComparison


def speech(
    ctx: typer.Context,
    run: options.Run,
    rows: Annotated[str, typer.Option(help="Texts spoken side by side; one or several numbers.")] = "1,8",
    file: Annotated[Path | None, typer.Option(help="Say the lines of this file instead of eight sentences.")] = None,
    voice: options.Voice = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the codes.")] = 0.7,
    rounds: Annotated[int, typer.Option(min=2, help="Turns each case takes.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every case; default: torch's choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
    full: Annotated[
        bool | None, typer.Option("--full/--quick", help="A report of the techniques instead, as `bench all` makes it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Of a report: where its files go.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Of a report: measure so often, fail on contradictions.")] = 1,
) -> None:
    """Speech: real-time factor, first sound after the first token; float and int8, torch's modules and native.

    Cases run in processes of their own and take turns. Ends with one JSON line. With --quick or --full the techniques
    of speaking on against off, as a report.

    Example: muomni bench speech runs/speak
    """
    if bench_report.wants_report(ctx, full is not None, common=("run",)):
        return bench_report.report(("speech",), "speech", run, full, out, repeat)
    from rich.console import Console

    from muomni.bench.decoding.comparisons import batches_of
    from muomni.bench.speech import TEXTS, compare_speaking, speech_cases
    from muomni.formats.pretrained import read_config
    from muomni.formats.tensors import resolve_folder

    counts = batches_of(rows, "--rows")
    texts = TEXTS if file is None else _lines(file)
    folder = resolve_folder(Path(run))
    config, _ = read_config(folder)
    if config.talker is None:
        raise UserError(f"{run}: this model has no talker, so it says nothing; train one with a `speak` stage")
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    common = {
        "model": str(folder),
        "texts": texts,
        "voice": voice or "",
        "temperature": temperature,
        "threads": threads,
    }
    console = Console(stderr=True)
    found = compare_speaking(speech_cases(counts, common), rounds, lambda text: console.print(text, highlight=False))
    if not as_json:
        print_speaking(f"{run}, {len(texts)} texts, {threads} threads", found)
    print(json.dumps({"model": run, "threads": threads, "texts": len(texts), "rounds": rounds, **found.as_dict()}))


def _lines(file: Path) -> tuple[str, ...]:
    """Raises:
    UserError: the file cannot be read, or holds nothing.
    """
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if not lines:
        raise UserError(f"{file}: holds nothing to say")
    return lines


def print_speaking(title: str, comparison: "SpeakingComparison") -> None:
    """A table, with what could not be measured and how far the machine can be trusted."""
    first = comparison.cases[0].name
    names = ("case", "real-time factor", f"sound / {first}", "first sound ms", "load s", "MiB")
    rows = [
        (
            row.name,
            f"{row.real_time:.3f} ({row.low:.3f}–{row.high:.3f})",
            f"{row.ratio:.2f}× ({row.ratio_low:.2f}–{row.ratio_high:.2f})",
            "–" if row.first_ms is None else f"{row.first_ms:.0f} ({row.first_low:.0f}–{row.first_high:.0f})",
            f"{row.load_s:.1f}",
            f"{row.peak_mib:,.0f}",
        )
        for row in comparison.cases
    ]
    bench_report.print_table(title, names, rows)
    bench_report.print_remarks(comparison.unmeasured, comparison.noise)
