"""Plots as SVG text, small enough to read: bars with intervals, stacked bars, and lines.

All are drawn 340 units wide, so that on a phone a unit is about a pixel and text keeps its size. Colours are CSS
variables of the page (`--ink`, `--soft`, `--line`, `--c0` …), so that a dark page has dark plots.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_Scale = Callable[[float], float]
_Name = Callable[[float], str]

WIDTH = 340
_ROW, _TOP, _BOTTOM = 34, 6, 26
_LEFT, _RIGHT = 8, 12
_LINE_HEIGHT = 190
# Width of a letter of the plots' text, on average.
_LETTER = 6.0


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


def ratio_plot(bars: Sequence[Bar], title: str) -> str:
    """Ratios on a logarithmic axis around 1: bars go from 1 to the value, whiskers over the interval."""
    least = min([0.5, *(bar.low for bar in bars)])
    most = max([2.0, *(bar.high for bar in bars)])
    # A wild interval is cut at the edge rather than squeezing all others.
    low, high = math.log2(max(least, 1 / 16)), math.log2(min(most, 64))

    def x(value: float) -> float:
        place = (min(max(math.log2(max(value, 1e-9)), low), high) - low) / (high - low)
        return _LEFT + place * (WIDTH - _LEFT - _RIGHT)

    ticks = [2.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return _bars(bars, x, 1.0, ticks, lambda value: f"{value:g}×", title)


def amount_plot(bars: Sequence[Bar], unit: str, title: str, roof: float | None = None) -> str:
    """Amounts from 0; `roof` is a dashed line that none should pass."""
    most = max([*(bar.high for bar in bars), roof or 0.0, 1e-9]) * 1.04

    def x(value: float) -> float:
        return _LEFT + value / most * (WIDTH - _LEFT - _RIGHT)

    return _bars(bars, x, 0.0, _ticks(most), lambda value: f"{value:g} {unit}" if value else "0", title, roof)


def _bars(
    bars: Sequence[Bar],
    x: _Scale,
    zero: float,
    ticks: Sequence[float],
    name: _Name,
    title: str,
    roof: float | None = None,
) -> str:
    height = _TOP + _ROW * len(bars) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [_axis(x(tick), bottom, name(tick)) for tick in ticks]
    parts.append(f'<path d="M{x(zero):.1f} {_TOP}V{bottom}" stroke="var(--ink)" stroke-width="1"/>')
    if roof is not None:
        parts.append(
            f'<path d="M{x(roof):.1f} {_TOP}V{bottom}" stroke="var(--c3)" stroke-width="1.5" stroke-dasharray="5 3"/>'
        )
    for number, bar in enumerate(bars):
        top = _TOP + number * _ROW
        left, right = sorted((x(zero), x(bar.value)))
        middle = top + 23
        parts += [
            _text(_LEFT, top + 13, _beside(bar.label, bar.note)),
            _text(WIDTH - _RIGHT, top + 13, bar.note, "end", "soft"),
            f'<rect x="{left:.1f}" y="{top + 18}" width="{max(right - left, 1):.1f}" height="10" rx="2" '
            f'fill="var(--c{bar.colour})"/>',
        ]
        if bar.high > bar.low:
            low, high = x(bar.low), x(bar.high)
            parts.append(
                f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
                'stroke="var(--ink)" stroke-width="1.2" fill="none"/>'
            )
    return _svg(height, parts, title)


def _beside(label: str, note: str) -> str:
    """A label cut to the room that its note leaves, since neither can wrap."""
    room = int((WIDTH - _LEFT - _RIGHT) / _LETTER) - len(note) - 1
    return label if len(label) <= room else label[: room - 1].rstrip(" ,:") + "…"


def stack_plot(bars: Sequence[tuple[str, Sequence[float]]], unit: str, title: str) -> str:
    """Bars of parts in a row; the number of a part is that of its colour."""
    most = max([*(sum(parts) for _, parts in bars), 1e-9]) * 1.02
    height = _TOP + _ROW * len(bars) + _BOTTOM
    scale = (WIDTH - _LEFT - _RIGHT) / most
    drawn = [_axis(_LEFT + tick * scale, height - _BOTTOM, f"{tick:g}") for tick in _ticks(most)]
    for number, (label, parts) in enumerate(bars):
        top, left = _TOP + number * _ROW, float(_LEFT)
        note = f"{sum(parts):,.0f} {unit}"
        drawn.append(_text(_LEFT, top + 13, _beside(label, note)))
        drawn.append(_text(WIDTH - _RIGHT, top + 13, note, "end", "soft"))
        for colour, part in enumerate(parts):
            if part > 0:
                place = f'x="{left:.1f}" y="{top + 18}" width="{part * scale:.1f}" height="10"'
                drawn.append(f'<rect {place} fill="var(--c{colour})"/>')
            left += part * scale
    return _svg(height, drawn, title)


@dataclass(frozen=True)
class Point:
    """One point of a line with its interval."""

    x: float
    y: float
    low: float
    high: float


def line_plot(points: Sequence[Point], x_name: str, y_name: str, title: str) -> str:
    """One line over a logarithmic x axis, from 0 on; needs at least two points."""
    left, right, top, bottom = 46, WIDTH - _RIGHT, 22, _LINE_HEIGHT - 40
    first, last = math.log2(points[0].x), math.log2(points[-1].x)
    most = max(point.high for point in points) * 1.05

    def at(value: float) -> float:
        return left + (math.log2(value) - first) / max(last - first, 1e-9) * (right - left - 8)

    def height(value: float) -> float:
        return bottom - value / most * (bottom - top)

    parts = [_text(0, 12, y_name, "start", "soft"), _text(right, _LINE_HEIGHT - 6, x_name, "end", "soft")]
    for tick in _ticks(most):
        y = height(tick)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="var(--line)"/>')
        parts.append(_text(left - 5, y + 4, f"{tick:,g}" if tick < 1e4 else f"{tick / 1000:g}k", "end", "soft"))
    for point in points:
        parts.append(_text(at(point.x), bottom + 16, f"{point.x:g}", "middle", "soft"))
        parts.append(
            f'<path d="M{at(point.x):.1f} {height(point.low):.1f}V{height(point.high):.1f}" stroke="var(--ink)"/>'
        )
    path = "L".join(f"{at(point.x):.1f} {height(point.y):.1f}" for point in points)
    parts.append(f'<path d="M{path}" stroke="var(--c0)" stroke-width="2" fill="none"/>')
    parts += [f'<circle cx="{at(p.x):.1f}" cy="{height(p.y):.1f}" r="3" fill="var(--c0)"/>' for p in points]
    return _svg(_LINE_HEIGHT, parts, title)


def _ticks(most: float) -> list[float]:
    """Round numbers from 0, four or five of them."""
    step = 10 ** math.floor(math.log10(most / 2)) if most > 0 else 1.0
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if most / (step * factor) <= 4.5)
    return [step * number for number in range(int(most / step) + 1)]


def _axis(x: float, bottom: float, label: str) -> str:
    line = f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="var(--line)"/>'
    anchor = "start" if x < 30 else "end" if x > WIDTH - 30 else "middle"
    return line + _text(x, bottom + 16, label, anchor, "soft")


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "ink") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{kind})">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{inside}</svg>'
    )
