"""Plots of a report as SVG, drawn by matplotlib: bars with intervals, stacked bars, and lines.

All are 340 units wide, so that on a phone a unit is about a pixel and text keeps its size. Text stays text in the
page's font. Colours are CSS variables of the page (`--ink`, `--soft`, `--line`, `--c0` …), so that a dark page has
dark plots: matplotlib draws with placeholders, which `_svg` replaces. The same plot is the same bytes each time.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 340
# Height of a row, and where in it the bar's middle is; margins above, below and beside the bars.
_ROW, _BAR, _TOP, _BOTTOM, _MARGIN = 34, 23, 6, 26, 24
_LINE_HEIGHT = 190
_FONT = 11
# Width of a letter of the plots' text, on average.
_LETTER = 6.0
_NAMES = ("ink", "soft", "line", *(f"c{number}" for number in range(6)))
_COLOURS = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "muomni", "font.size": _FONT}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Bar:
    """One row of a bar plot.

    Attributes:
        label: above the bar.
        value: where it ends; `low` and `high` are its interval.
        note: at the right of the label.
        colour: number of a CSS variable.
    """

    label: str
    value: float
    low: float
    high: float
    note: str
    colour: int = 0


@dataclass(frozen=True)
class Point:
    """One point of a line with its interval."""

    x: float
    y: float
    low: float
    high: float


def ratio_plot(bars: Sequence[Bar], title: str) -> str:
    """Ratios on a logarithmic axis around 1: bars go from 1 to the value, whiskers over the interval."""
    # A wild interval is cut at the edge rather than squeezing all others.
    limits = max(min([0.5, *(bar.low for bar in bars)]), 1 / 16), min(max([2.0, *(bar.high for bar in bars)]), 64.0)
    axes = _row_axes([(bar.label, bar.note) for bar in bars], limits, "×", logarithmic=True)
    _draw_bars(axes, bars, 1.0)
    return _svg(axes, title)


def amount_plot(bars: Sequence[Bar], unit: str, title: str, roof: float | None = None) -> str:
    """Amounts from 0; `roof` is a dashed line that none should pass."""
    most = max([*(bar.high for bar in bars), roof or 0.0, 1e-9]) * 1.04
    axes = _row_axes([(bar.label, bar.note) for bar in bars], (0, most), f" {unit}")
    _draw_bars(axes, bars, 0.0)
    if roof is not None:
        axes.axvline(roof, color=_COLOURS["c3"], linewidth=1.5, linestyle=(0, (5, 3)))
    return _svg(axes, title)


def stack_plot(bars: Sequence[tuple[str, Sequence[float]]], unit: str, title: str) -> str:
    """Bars of parts in a row; the number of a part is that of its colour."""
    rows = [(label, f"{sum(parts):,.0f} {unit}") for label, parts in bars]
    axes = _row_axes(rows, (0, max([*(sum(parts) for _, parts in bars), 1e-9]) * 1.02))
    for number, (_, parts) in enumerate(bars):
        for part, width in enumerate(parts):
            if width > 0:
                axes.barh(number * _ROW + _BAR, width, 10, sum(parts[:part]), color=_COLOURS[f"c{part % 6}"])
    return _svg(axes, title)


def line_plot(points: Sequence[Point], x_name: str, y_name: str, title: str) -> str:
    """One line over a logarithmic x axis, from 0 on; needs at least two points."""
    axes = _axes(_LINE_HEIGHT, 22, 40, 46, "y")
    axes.set_ylim(0, max(point.high for point in points) * 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e4 else f"{value / 1000:g}k")
    x = [point.x for point in points]
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    axes.vlines(x, [point.low for point in points], [point.high for point in points], _COLOURS["ink"], linewidth=1)
    axes.plot(x, [point.y for point in points], color=_COLOURS["c0"], marker="o", markersize=6, linewidth=2)
    axes.set_xlabel(x_name, color=_COLOURS["soft"], loc="right")
    axes.set_title(y_name, color=_COLOURS["soft"], fontsize=_FONT, x=-0.15, ha="left")
    return _svg(axes, title)


def _axes(height: float, top: float, bottom: float, left: float, grid: Literal["x", "y"]) -> "Axes":
    """Axes of a new figure, one point a unit, with these margins and no frame."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    size = (WIDTH - left - _MARGIN) / WIDTH, (height - top - bottom) / height
    axes = figure.add_axes((left / WIDTH, bottom / height, *size), frameon=False, axisbelow=True)
    axes.tick_params(bottom=False, left=False, labelsize=_FONT, labelcolor=_COLOURS["soft"])
    axes.grid(axis=grid, color=_COLOURS["line"])
    getattr(axes, f"{grid}axis").set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    return axes


def _row_axes(
    rows: Sequence[tuple[str, str]], limits: tuple[float, float], unit: str = "", logarithmic: bool = False
) -> "Axes":
    """Axes with a row for each bar, its label and note above it; y is in units from the top."""
    from matplotlib.ticker import LogLocator

    length = _ROW * len(rows)
    axes = _axes(_TOP + length + _BOTTOM, _TOP, _BOTTOM, _MARGIN, "x")
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2 if limits[1] < 200 * limits[0] else 4, numticks=99))
        axes.minorticks_off()
    axes.set(xlim=limits, ylim=(length, 0), yticks=[])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{unit if value else ''}")
    style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": _FONT, "parse_math": False}
    for number, (label, note) in enumerate(rows):
        y = number * _ROW + 13
        axes.text(0, y, _beside(label, note), color=_COLOURS["ink"], **style)
        axes.text(1, y, note, color=_COLOURS["soft"], ha="right", **style)
    return axes


def _draw_bars(axes: "Axes", bars: Sequence[Bar], zero: float) -> None:
    low, high = axes.get_xlim()
    axes.axvline(zero, color=_COLOURS["ink"], linewidth=1)
    for number, bar in enumerate(bars):
        y = number * _ROW + _BAR
        end, *interval = (min(max(value, low), high) for value in (bar.value, bar.low, bar.high))
        axes.barh(y, end - zero, 10, zero, color=_COLOURS[f"c{bar.colour}"])
        if bar.high > bar.low:
            axes.plot(interval, [y, y], color=_COLOURS["ink"], linewidth=1.2, marker="|", markersize=8)


def _beside(label: str, note: str) -> str:
    """A label cut to the room that its note leaves, since neither can wrap."""
    room = int((WIDTH - 2 * _MARGIN) / _LETTER) - len(note) - 1
    return label if len(label) <= room else label[: room - 1].rstrip(" ,:") + "…"


def _svg(axes: "Axes", title: str) -> str:
    """The element for a page, without a date, clip paths or fonts of matplotlib's own."""
    import matplotlib

    for artist in axes.findobj():
        artist.set_clip_on(False)
    text = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        axes.figure.savefig(text, format="svg", metadata=_NO_METADATA)  # type: ignore[union-attr]
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;]*; ", "", svg, flags=re.DOTALL)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    named = f'<svg role="img" aria-label="{escape(title)}"'
    return svg.replace("<svg", named, 1).replace(">", f"><title>{escape(title)}</title>", 1)
