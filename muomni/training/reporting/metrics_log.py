"""What a run writes about itself: `metrics.jsonl`, TensorBoard when it is installed, and the loss curve."""

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from muomni.files import atomic_file, json_line, text_lines, write_atomic

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends JSON lines; each has `kind` (`train`, `speed`, `val`, `sample`, `compile`, `event`) and `step`.

    Args:
        run: the run folder.
        first_step, attempts: steps that a resumed run has applied and tried. Lines beyond them were written after the
            checkpoint and come again, so they are dropped first; 0 begins a new file.
        tensorboard: also write event files below `run/tensorboard`; needs the `tensorboard` extra.
        silent: write nothing at all: of several processes one writes.
    """

    def __init__(self, run: Path, first_step: int, attempts: int, tensorboard: bool, silent: bool = False) -> None:
        self.path = run / METRICS
        self._silent = silent
        self._size = 0
        self._lines: list[bytes] = []
        self._board: Any = None
        if silent:
            return
        kept = _written_before(read_lines(self.path), first_step, attempts) if first_step else []
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._size = self.path.stat().st_size
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds one line."""
        if self._silent:
            return
        self._lines.append(json_line({"kind": kind, "step": step, **values}))
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
                elif kind == "sample" and isinstance(value, str):
                    self._board.add_text(f"{kind}/{name}", value, step)

    def flush(self) -> str | None:
        """Hands the lines to the operating system, so that they outlive a killed process.

        Returns:
            Why they cannot be written now, as on a full disk; they are kept and written with the next ones.
        """
        if self._silent or not self._lines:
            return None
        content = b"".join(self._lines)
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._size)  # what an attempt that failed has left
                file.seek(self._size)
                file.write(content)
        except OSError as error:
            return f"{self.path}: cannot be written: {error.strerror or error}"
        self._size += len(content)
        self._lines.clear()
        return None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self._board is not None:
            self._board.close()


def tensorboard_installed() -> bool:
    """Whether the `tensorboard` extra is there."""
    return find_spec("tensorboard") is not None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what a kill, a full disk or a hand left unreadable is left out."""
    if not path.exists():
        return []
    parsed = []
    for line in text_lines(path.read_text(encoding="utf-8", errors="replace")):
        with suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int) and "kind" in values:
                parsed.append(values)
    return parsed


def _written_before(lines: list[dict[str, Any]], applied: int, attempts: int) -> list[dict[str, Any]]:
    """The lines from before a checkpoint; a skipped step has the number of the applied one before it."""
    tried = 0
    for number, line in enumerate(lines):
        tried += line["kind"] == "train"
        if line["step"] > applied or tried > attempts:
            return lines[:number]
    return lines


def plot_losses(run: Path, unit: str = "nats per token") -> Path:
    """Draws training and validation loss, in `unit`, over optimizer steps into `run/loss.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_lines(run / METRICS)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = ("loss", "speech", "contrastive", "ctc")
    # Without a loss of the text it is the Talker's or an encoder's that is learnt.
    name = next((n for n in names for line in lines if line["kind"] == "train" and n in line), "loss")
    train = [(line["step"], line[name]) for line in lines if line["kind"] == "train" and line.get(name) is not None]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training, each step")
        window = max(1, len(losses) // 50)
        axes.plot(steps, _smooth(losses, window), color="tab:blue", label=f"training, mean of {window} steps")
    val = [(line["step"], line[name]) for line in lines if line["kind"] == "val" and name in line]
    if val:
        steps, losses = zip(*val, strict=True)
        axes.plot(steps, losses, "o-", color="tab:orange", label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(
        f"loss ({unit})" if name == "loss" else f"{name} loss (nats{' per frame' if name == 'speech' else ''})"
    )
    axes.set_title(run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run / "loss.png"
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def _smooth(values: tuple[float, ...], window: int) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = [max(0, i + 1 - window) for i in range(len(values))]
    return [(sums[i + 1] - sums[start]) / (i + 1 - start) for i, start in enumerate(starts)]
