"""`docs/claims.md`: what is usually claimed of each technique beside what reports measured."""

from collections.abc import Sequence

from muomni.accel.technique import TECHNIQUES, Technique
from muomni.bench.report.report import Report, ReportRow

_HEAD = """# Claims, measured

Made by `muomni bench claims REPORT...` from reports of `muomni bench`; do not edit. A speed is on over off, the
median of interleaved rounds with its 99% interval. A figure is of that machine and that model only: repeat it on
yours with the command beside it.
"""
_NONE = "not measured: the report has no such row"


def claims(reports: Sequence[Report], techniques: Sequence[Technique] = TECHNIQUES) -> str:
    """The page, a row for each claim and report."""
    lines = [_HEAD, "| technique | claim | measured | verdict | model | machine | date | command |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for technique in (technique for technique in techniques if technique.claim_rows):
        for report in reports:
            rows = [row for key in technique.claim_rows if (row := report.row(key)) is not None]
            row = next((row for row in rows if row.speed is not None), rows[0] if rows else None)
            if row is None:
                measured, verdict = _NONE, ""
            elif row.speed is None:
                measured, verdict = f"not measured: {row.reason}", ""
            else:
                measured, verdict = _measured(technique, row), f"{row.verdict}: {row.reason}"
            noisy = ", a noisy machine" if report.noise else ""
            cells = (technique.title, technique.claim, measured, verdict, report.model.name)
            where = (report.machine.words + noisy, report.date.partition("T")[0], f"`{report.command}`")
            lines.append("| " + " | ".join(_cell(text) for text in (*cells, *where)) + " |")
    return "\n".join(lines) + "\n"


def _measured(technique: Technique, row: ReportRow) -> str:
    """The speed; in training also the peak memory; of weights their size; both speeds where the claim has no number."""
    assert row.speed is not None
    words = f"{row.speed.ratio:.2f}× ({row.speed.low:.2f}–{row.speed.high:.2f})"
    for memory in row.memory:
        if memory.what == "weights":
            sizes = f"{memory.off_mib:,.1f} → {memory.on_mib:,.1f} MiB"
            words = f"{1 / memory.ratio:.2f}× smaller ({sizes}); speed {words}"
        elif row.part == "train":
            words += f"; peak memory {memory.ratio:.2f}×"
    if technique.claimed_speed is None and technique.claimed_memory is None:
        words += f": {row.speed.off:,.0f} → {row.speed.on:,.0f} {row.speed.unit}, {row.on}"
    return words


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
