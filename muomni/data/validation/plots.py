"""Plots of a data set: histograms and a contact sheet."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data.validation.check import Findings


def plot_histograms(findings: Findings, target: Path) -> None:
    """Durations, picture sizes and tokens per row as a PNG."""
    panels: list[tuple[str, list[Any]]] = [
        ("seconds of a sound", list(findings.seconds)),
        ("longer side of a picture, pixels", [max(size) for size in findings.sizes]),
        ("tokens of the media of a row", list(findings.tokens)),
    ]
    figure = _figure(len(panels) * 4, 3)
    for n, (label, values) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), n)
        axes.hist(values, bins=40) if values else axes.text(0.5, 0.5, "none", ha="center")
        axes.set_xlabel(label)
        axes.set_yscale("log" if values else "linear")
    _save(figure, target)


def plot_contact_sheet(findings: Findings, target: Path) -> None:
    """Some pictures and waveforms with their names as a PNG."""
    columns = 8
    rows = max(1, math.ceil(len(findings.samples) / columns))
    figure = _figure(columns * 1.6, rows * 1.8)
    for n, (name, sample) in enumerate(findings.samples, 1):
        axes = figure.add_subplot(rows, columns, n)
        axes.set_axis_off()
        axes.set_title(name.rpartition("/")[2].rpartition(": ")[2][-22:], fontsize=6, parse_math=False)
        if sample.ndim == 3:
            axes.imshow(sample)
        else:
            axes.fill_between(np.arange(sample.shape[1]), sample[0], sample[1])
    _save(figure, target)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(target))
