"""The line a person watches while a run goes."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressLine:
    """A rich progress bar on a terminal; elsewhere a plain line each time, fit for a log file.

    Args:
        total, done: steps.
        silent: print nothing: of several processes one prints.
    """

    def __init__(self, total: int, done: int, silent: bool = False) -> None:
        self.console = Console(stderr=True, quiet=silent)
        self._live = sys.stderr.isatty() and not silent
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._total = total
        self._task = self._bar.add_task("", total=total, completed=done, note="")

    def update(self, step: int, note: str | None = None, seconds_left: float | None = None) -> None:
        """Moves the bar; `note` replaces the figures beside it."""
        if note is None:
            self._bar.update(self._task, completed=step)
            return
        self._bar.update(self._task, completed=step, note=note)
        if not self._live:
            left = f"  left {seconds_left / 60:.1f} min" if seconds_left is not None else ""
            self.say(f"step {step}/{self._total}  {note}{left}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
