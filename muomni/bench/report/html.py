"""`report.html`: a report as one file that opens offline, on a phone as on a screen, in light and in dark.

Nothing is fetched and nothing runs: styles and plots stand in the file. Wide tables scroll inside their own box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from muomni.bench.report.report import MemoryBar, Report, ReportRow
from muomni.bench.report.svg import Bar, Point, amount_plot, line_plot, ratio_plot, stack_plot
from muomni.config.loader import CHAT

_CATEGORIES = ("weights", "gradients", "optimizer", "activations", "cache", "other")
_PARTS = {"train": "Training", "infer": "Inference", "speech": "Speech"}
_COLOURS = {"on": 1, "off": 3, "no difference": 5, "not measured": 5}
_STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6570;--line:#d8dde3;--box:#f5f7f9;
--c0:#2f6fb0;--c1:#2e8b57;--c2:#b07d1e;--c3:#c0453c;--c4:#7a5bb5;--c5:#94a0ab}
@media(prefers-color-scheme:dark){:root{--paper:#14181c;--ink:#e6e9ec;--soft:#9da8b3;--line:#333b43;--box:#1d2329;
--c0:#6aa5de;--c1:#5fbf88;--c2:#d9a84a;--c3:#e8786f;--c4:#a98be0;--c5:#6f7b86}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:1280px;margin:0 auto;padding:16px}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.2em;margin:1.6em 0 .4em}
p{margin:.4em 0}.soft{color:var(--soft)}
.noise{border-left:4px solid var(--c3);background:var(--box);padding:8px 12px;margin:12px 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;font-size:14px;width:100%;min-width:860px}
th,td{text-align:left;vertical-align:top;padding:6px 10px;border-bottom:1px solid var(--line);overflow-wrap:normal}
tr:last-child td{border-bottom:0}td.n{text-align:right;white-space:nowrap}
b.on{color:var(--c1)}b.off{color:var(--c3)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:16px}
figure{margin:0;padding:12px;background:var(--box);border-radius:6px;min-width:0}
figcaption{font-size:14px;margin-bottom:6px}
th:nth-child(-n+2),th:last-child{min-width:150px}
svg{display:block;width:100%;max-width:480px;height:auto;font:11px system-ui,sans-serif}
svg text{paint-order:stroke;stroke:var(--box);stroke-width:3px;stroke-linejoin:round}
.key span{display:inline-block;margin-right:12px;font-size:13px}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:4px}
pre{overflow-x:auto;background:var(--box);padding:10px;border-radius:6px;font-size:14px;margin:.4em 0}
"""


def page(report: Report) -> str:
    """The whole file."""
    weights = "random weights" if report.model.random_weights else "its own weights"
    head = [
        f"<h1>muomni bench: {escape(report.model.name)}</h1>",
        f"<p>{report.model.parameters / 1e6:.3g} M parameters, {weights}. {escape(report.machine.words)}, "
        f"{report.machine.memory_mib / 1024:.0f} GiB, {escape(report.machine.system)}.</p>",
        f'<p class="soft">{escape(report.date)} · {report.mode}, {report.seconds:.0f} s · '
        f"{escape(', '.join(f'{name} {version}' for name, version in report.versions.items()))}</p>",
    ]
    if report.noise:
        head.append(
            f'<p class="noise"><b>A noisy machine.</b> {escape("; ".join(report.noise))}. '
            "Small differences mean nothing here, and none is claimed.</p>"
        )
    tables = [_table(part, [row for row in report.rows if row.part == part]) for part in _PARTS]
    body = "".join([*head, *tables, _plots(report), _next(report)])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>muomni bench: {escape(report.model.name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _table(part: str, rows: Sequence[ReportRow]) -> str:
    if not rows:
        return ""
    names = ("technique", "verdict here", "speed, on / off", "tokens/s, off → on", "memory, off → on", "results")
    heads = "".join(f"<th>{name}</th>" for name in (*names, "usually claimed"))
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<h2>{_PARTS[part]}</h2><div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cells(row: ReportRow) -> str:
    shown = cells(row)
    kind = row.verdict if row.verdict in ("on", "off") else "soft"
    means = f'<br><span class="soft">{escape(row.off)} → {escape(row.on)}</span>' if row.off else ""
    first = f"<td><b>{escape(row.technique)}</b>{means}</td>"
    verdict = f'<td><b class="{kind}">{row.verdict}</b><br><span class="soft">{escape(row.reason)}</span></td>'
    texts = (shown.ratio, shown.speeds, shown.memory)
    numbers = "".join(f'<td class="n">{escape(text).replace("; ", "<br>")}</td>' for text in texts)
    return f"{first}{verdict}{numbers}<td>{escape(shown.results)}</td><td>{escape(row.claim)}</td>"


@dataclass(frozen=True)
class Cells:
    """A row's figures in words; a dash where there are none.

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


def _plots(report: Report) -> str:
    found = [_speed_plot(report, part) for part in _PARTS]
    found += [_memory_plot("Peak memory in training, by category", [b for b in report.memory if b.optimizer_mib])]
    found += [_memory_plot("Peak memory in decoding, by category", [b for b in report.memory if not b.optimizer_mib])]
    found += [_roof_plot(report), *_scaling_plots(report)]
    shown = "".join(plot for plot in found if plot)
    return f'<h2>Plots</h2><div class="plots">{shown}</div>' if shown else ""


def _figure(caption: str, svg: str, key: str = "") -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}{key}</figure>"


def _speed_plot(report: Report, part: str) -> str:
    bars = [
        Bar(
            row.technique,
            row.speed.ratio,
            row.speed.low,
            row.speed.high,
            f"{row.speed.ratio:.2f}×, {row.verdict}",
            _COLOURS[row.verdict],
        )
        for row in report.rows
        if row.part == part and row.speed is not None
    ]
    if not bars:
        return ""
    title = f"{_PARTS[part]}: speed with each technique over without"
    return _figure(f"{title}; whiskers are 99% intervals", ratio_plot(bars, title))


def _memory_plot(title: str, bars: Sequence[MemoryBar]) -> str:
    if not bars:
        return ""
    stacks = [(bar.name, [getattr(bar, f"{name}_mib") for name in _CATEGORIES]) for bar in bars]
    used = [number for number in range(len(_CATEGORIES)) if any(parts[number] > 0 for _, parts in stacks)]
    key = "".join(f'<span><i style="background:var(--c{n})"></i>{_CATEGORIES[n]}</span>' for n in used)
    return _figure(title, stack_plot(stacks, "MiB", title), f'<p class="key">{key}</p>')


def _roof_plot(report: Report) -> str:
    roof = report.bandwidth_gb_per_s
    if roof is None or not report.decode:
        return ""
    bars = [
        Bar(p.name, p.gb_per_s, p.gb_per_s, p.gb_per_s, f"{p.gb_per_s:.1f} GB/s, {p.gb_per_s / roof:.0%}")
        for p in report.decode
    ]
    title = (
        f"Decoding: weights read in a second; the dashed roof is this machine's memory, {roof:.0f} GB/s (weights that "
        "fit the processor's caches can exceed it)"
    )
    return _figure(title, amount_plot(bars, "GB/s", title, roof))


def _scaling_plots(report: Report) -> list[str]:
    found = []
    named = (
        (report.scaling.batch, f"Decode speed over batch size, at {report.scaling.batch_context} tokens", "rows"),
        (report.scaling.context, "Decode speed over context, one row", "tokens before"),
    )
    for points, title, name in named:
        if len(points) > 1:
            drawn = [Point(p.at, p.tokens_per_s, p.low, p.high) for p in points]
            found.append(_figure(title, line_plot(drawn, name, "tokens/s, all rows", title)))
    return found


def _next(report: Report) -> str:
    parts = [f"<h2>Again</h2><pre>{escape(report.command)}</pre>"]
    if report.tuned.keys() - {CHAT}:
        lines = "\n".join(f"{key} = {value}" for key, value in report.tuned.items() if key != CHAT)
        parts.append(
            "<h2>For a recipe</h2><p>tuned.json holds what was faster here: "
            f"muomni train RECIPE --set @tuned.json</p><pre>{escape(lines)}</pre>"
        )
    if report.advice:
        parts.append("<h2>For chatting</h2>" + "".join(f"<p>{escape(text)}</p>" for text in report.advice))
    return "".join(parts)
