"""`docs/claims.md`: what is usually promised of each technique beside what reports measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muomni.bench.report.report import Report, ReportRow

_HEAD = """# Claims, measured

Made by `muomni bench claims REPORT...` from reports of `muomni bench`; do not edit. A speed is on over off, the
median of interleaved rounds with its 99% interval. A figure is of that machine and that model only: repeat it on
yours with the command beside it.
"""
_NONE = "not measured: the report has no such row"


@dataclass(frozen=True)
class Claim:
    """What is usually promised.

    Attributes:
        technique: of what.
        promised: in words.
        keys: of the rows that measure it, the first that was measured is taken.
        measured: what such a row says, in words.
    """

    technique: str
    promised: str
    keys: tuple[str, ...]
    measured: Callable[[ReportRow], str]


def _speed(row: ReportRow) -> str:
    assert row.speed is not None
    return f"{row.speed.ratio:.2f}× ({row.speed.low:.2f}–{row.speed.high:.2f})"


def _speed_and_memory(row: ReportRow) -> str:
    peak = next((one for one in row.memory if one.what == "peak"), None)
    return _speed(row) + ("" if peak is None else f"; peak memory {peak.ratio:.2f}×")


def _size(row: ReportRow) -> str:
    weights = next((one for one in row.memory if one.what == "weights"), None)
    if weights is None:
        return _speed(row)
    return f"{1 / weights.ratio:.2f}× smaller ({weights.off_mib:,.1f} → {weights.on_mib:,.1f} MiB); speed {_speed(row)}"


def _throughput(row: ReportRow) -> str:
    assert row.speed is not None
    return f"{_speed(row)}: {row.speed.off:,.0f} → {row.speed.on:,.0f} tokens/s, {row.on}"


CLAIMS = (
    Claim("mixed precision", "2× faster, 50% of the memory", ("precision-bf16", "precision-fp16"), _speed_and_memory),
    Claim("flash attention", "2–4× faster", ("attention-packed", "attention"), _speed_and_memory),
    Claim("KV cache", "10× faster at 100 tokens", ("kv-cache",), _speed),
    Claim("int8 weights", "4× smaller", ("int8",), _size),
    Claim("batched replies", "many times the tokens a second", ("batching",), _throughput),
)


def claims(reports: Sequence[Report]) -> str:
    """The page, a row for each claim and report."""
    lines = [_HEAD, "| technique | claim | measured | verdict | model | machine | date | command |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for claim in CLAIMS:
        for report in reports:
            found = [row for key in claim.keys if (row := report.row(key)) is not None]
            row = next((row for row in found if row.speed is not None), found[0] if found else None)
            if row is None:
                measured, verdict = _NONE, ""
            elif row.speed is None:
                measured, verdict = f"not measured: {row.reason}", ""
            else:
                measured, verdict = claim.measured(row), f"{row.verdict}: {row.reason}"
            noisy = ", a noisy machine" if report.noise else ""
            cells = (claim.technique, claim.promised, measured, verdict, report.model.name)
            where = (report.machine.words + noisy, report.date.partition("T")[0], f"`{report.command}`")
            lines.append("| " + " | ".join(_cell(text) for text in (*cells, *where)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
