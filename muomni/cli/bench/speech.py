"""`muomni bench speech`: ways to speak, side by side on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muomni.cli.bench import report as bench_report
from muomni.cli.common import options
from muomni.cli.common.output import print_json
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
    rounds: bench_report.Rounds = 5,
    threads: bench_report.Threads = None,
    as_json: bench_report.OnlyJson = False,
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
    from muomni.bench.decoding.comparisons import batches_of
    from muomni.bench.speech import TEXTS, compare_speaking, speech_cases
    from muomni.cli.say import read_texts
    from muomni.formats.pretrained import read_config
    from muomni.formats.tensors import resolve_folder

    counts = batches_of(rows, "--rows")
    texts = TEXTS if file is None else tuple(read_texts(None, file, whole=False).values())
    folder = resolve_folder(Path(run))
    config, _ = read_config(folder)
    if config.talker is None:
        raise UserError(f"{run}: this model has no talker, so it says nothing; train one with a `speak` stage")
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    common = {"model": str(folder), "texts": texts, "voice": voice or "", "temperature": temperature}
    cases = speech_cases(counts, common | {"threads": threads})
    comparison = compare_speaking(cases, rounds, bench_report.show_progress())
    if not as_json:
        _print(f"{run}, {len(texts)} texts, {threads} threads", comparison)
    print_json({"model": run, "threads": threads, "texts": len(texts), "rounds": rounds, **comparison.as_dict()})


def _print(title: str, comparison: "SpeakingComparison") -> None:
    """A table, with what could not be measured and how far the machine can be trusted."""
    columns = {
        "case": "{0.name}",
        "real-time factor": "{0.real_time:.3f} ({0.low:.3f}–{0.high:.3f})",
        f"sound / {comparison.cases[0].name}": "{0.ratio:.2f}× ({0.ratio_low:.2f}–{0.ratio_high:.2f})",
        "first sound ms": "{0.first_ms:.0f} ({0.first_low:.0f}–{0.first_high:.0f})",
        "load s": "{0.load_s:.1f}",
        "MiB": "{0.peak_mib:,.0f}",
    }
    bench_report.print_measured(title, comparison.cases, columns, left=("case",))
    bench_report.print_remarks(comparison.unmeasured, comparison.noise)
