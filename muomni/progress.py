"""Progress on standard error: a bar for work that ends soon, a line for a training run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, ProgressColumn


class ProgressBar:
    """One task of a `progress_bar`."""

    def __init__(self, bar: "Progress", name: str, total: float | None, visible: bool = True) -> None:
        self._bar = bar
        self._task = bar.add_task(name, total=total, note="", visible=visible)

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Adds to what is done; `note` replaces the text at the end of the line."""
        self._bar.update(self._task, advance=amount)
        self._set(note)

    def update(self, done: float, note: str | None = None) -> None:
        """Sets what is done."""
        self._bar.update(self._task, completed=done)
        self._set(note)

    def show(self) -> None:
        """Draws a task that began invisible."""
        self._bar.update(self._task, visible=True)

    def _set(self, note: str | None) -> None:
        if note is not None:
            self._bar.update(self._task, note=note)

    def add(self, name: str, total: float | None = None) -> "ProgressBar":
        """Another task below this one; both go with the block of this one."""
        return ProgressBar(self._bar, name, total)


@contextmanager
def progress_bar(
    name: str,
    total: float | None = None,
    *,
    unit: Literal["items", "percent", "bytes"] = "items",
    shown: bool = True,
    visible: bool = True,
    always: bool = False,
) -> Iterator[ProgressBar]:
    """A bar that disappears with the block; writes nothing where standard error is not a terminal.

    Args:
        name: of the work, a present participle such as `encoding`.
        total: of the work, in any unit; None where it is not known.
        unit: what is written beside the bar: `3/10`, `30%`, or sizes with the speed.
        shown: False writes nothing, as the processes of a group that are not the first.
        visible: False draws nothing before `ProgressBar.show`, for work that may be over at once.
        always: write to what is no terminal too, and leave the bar there.
    """
    from rich.console import Console
    from rich.progress import Progress

    disable = not (always or (shown and sys.stderr.isatty()))
    with Progress(*_columns(unit), console=Console(stderr=True), disable=disable, transient=not always) as bar:
        yield ProgressBar(bar, name, total, visible)


def _columns(unit: str) -> "list[ProgressColumn]":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: dict[str, list[ProgressColumn]] = {
        "items": [MofNCompleteColumn()],
        "percent": [TaskProgressColumn()],
        "bytes": [DownloadColumn(), TransferSpeedColumn()],
    }
    name, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    left = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    return [name, BarColumn(bar_width=20), *amounts[unit], note, *left]


class ProgressLine:
    """The progress of a training run: a bar that stays on a terminal; elsewhere a line at each report, for a log file.

    Args:
        total, done: optimizer steps.
        silent: print nothing: of several processes one prints.
    """

    def __init__(self, total: int, done: int, silent: bool = False) -> None:
        from rich.console import Console
        from rich.progress import Progress

        class Lasting(Console):
            def on_broken_pipe(self) -> None:
                """Rich would end the process."""
                raise BrokenPipeError

        self._console = Lasting(stderr=True, quiet=silent)
        self._broken = False
        self._live = sys.stderr.isatty() and not silent
        self._total = total
        self._progress = Progress(*_columns("items"), console=self._console, disable=not self._live)
        self._bar = ProgressBar(self._progress, "step", total)
        self._bar.update(done)

    def update(self, step: int, note: str | None = None, seconds_left: float | None = None) -> None:
        """Moves the bar; `note` replaces the text beside it and is what a log file gets."""
        if self._broken:
            return
        try:
            self._bar.update(step, note)
        except (OSError, ValueError):
            self._give_up()
        if note is not None and not self._live:
            left = f"  left {seconds_left / 60:.1f} min" if seconds_left is not None else ""
            self.say(f"step {step}/{self._total}  {note}{left}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._broken:
            return
        try:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Nobody reads: the terminal is closed, or the reader of a pipe is gone. That ends no training."""
        self._broken = True
        self._console.quiet = True

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        try:
            self._progress.stop()
        except (OSError, ValueError):
            self._give_up()
