"""`report.html`: a report as one file (see `muomni.html_page`); wide tables scroll inside their own box."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muomni.bench.report.report import MemoryBar, Report, ReportRow
from muomni.bench.report.svg import Bar, Point, amount_plot, line_plot, ratio_plot, stack_plot
from muomni.html_page import render

_CATEGORIES = ("weights", "gradients", "optimizer", "activations", "cache", "other")
_PARTS = {"train": "Training", "infer": "Inference", "speech": "Speech"}
_COLOURS = {"on": 1, "off": 3, "no difference": 5, "not measured": 5}


def page(report: Report) -> str:
    """The whole file."""
    by_part = {title: [row for row in report.rows if row.part == part] for part, title in _PARTS.items()}
    return render(
        "muomni.bench.report",
        "page.html",
        report=report,
        tables=[(title, [(row, cells(row)) for row in rows]) for title, rows in by_part.items() if rows],
        figures=list(_figures(report)),
    )


@dataclass(frozen=True)
class Cells:
    """A row's measurements in words; a dash where there are none.

    Attributes:
        ratio: of speeds, with its interval.
        speeds, memory: off and on.
        results: class of equivalence and measured value.
    """

    ratio: str
    speeds: str
    memory: str
    results: str


def cells(row: ReportRow) -> Cells:
    """For the page and for the terminal."""
    speed, equal = row.speed, row.equivalence
    ratio = speeds = results = "–"
    if speed is not None:
        ratio = f"{speed.ratio:.2f}× ({speed.low:.2f}–{speed.high:.2f})"
        speeds = f"{speed.off:,.0f} → {speed.on:,.0f}"
    if row.compile_s is not None:
        ratio += f"; +{row.compile_s:.0f} s at the start"
    sizes = []
    for one in row.memory:
        of = "" if one.what == "peak" else f"{one.what} "
        sizes.append(f"{of}{one.off_mib:,.0f} → {one.on_mib:,.0f} MiB ({one.ratio:.2f}×)")
    if equal is not None:
        value = "equal" if equal.equal else f"{equal.value:.3g}"
        results = f"{equal.claimed}: {value}" + ("" if equal.holds else ", too far")
    return Cells(ratio, speeds, "; ".join(sizes) or "–", results)


@dataclass(frozen=True)
class _Figure:
    """A plot; `key` are numbers of colours with what they mean."""

    caption: str
    svg: str
    key: tuple[tuple[int, str], ...] = ()


def _figures(report: Report) -> Iterator[_Figure]:
    for part, name in _PARTS.items():
        yield from _speed_plot([row for row in report.rows if row.part == part], name)
    yield from _memory_plot("Peak memory in training, by category", [b for b in report.memory if b.optimizer_mib])
    yield from _memory_plot("Peak memory in decoding, by category", [b for b in report.memory if not b.optimizer_mib])
    if report.bandwidth_gb_per_s is not None and report.decode:
        roof = report.bandwidth_gb_per_s
        notes = [(p, f"{p.gb_per_s:.1f} GB/s, {p.gb_per_s / roof:.0%}") for p in report.decode]
        bars = [Bar(p.name, p.gb_per_s, p.gb_per_s, p.gb_per_s, note) for p, note in notes]
        title = (
            f"Decoding: weights read in a second; the dashed roof is this machine's memory, {roof:.0f} GB/s (weights "
            "that fit the processor's caches can exceed it)"
        )
        yield _Figure(title, amount_plot(bars, "GB/s", title, roof))
    scaling = report.scaling
    for points, title, x_name in (
        (scaling.batch, f"Decode speed over batch size, at {scaling.batch_context} tokens", "rows"),
        (scaling.context, "Decode speed over context, one row", "tokens before"),
    ):
        if len(points) > 1:
            line = [Point(p.at, p.tokens_per_s, p.low, p.high) for p in points]
            yield _Figure(title, line_plot(line, x_name, "tokens/s, all rows", title))


def _speed_plot(rows: Sequence[ReportRow], part: str) -> Iterator[_Figure]:
    bars = [
        Bar(row.technique, s.ratio, s.low, s.high, f"{s.ratio:.2f}×, {row.verdict}", _COLOURS[row.verdict])
        for row in rows
        if (s := row.speed) is not None
    ]
    if bars:
        title = f"{part}: speed with each technique over without"
        yield _Figure(f"{title}; whiskers are 99% intervals", ratio_plot(bars, title))


def _memory_plot(title: str, bars: Sequence[MemoryBar]) -> Iterator[_Figure]:
    stacks = [(bar.name, [getattr(bar, f"{name}_mib") for name in _CATEGORIES]) for bar in bars]
    key = [(n, name) for n, name in enumerate(_CATEGORIES) if any(parts[n] > 0 for _, parts in stacks)]
    if bars:
        yield _Figure(title, stack_plot(stacks, "MiB", title), tuple(key))
