"""Where a run reports: `metrics.jsonl`, and the user's terminal."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from muomni.progress import ProgressLine
from muomni.training.reporting.metrics_log import MetricsLog, tensorboard_installed


class RunLog:
    """Both at once; see `MetricsLog` and `ProgressLine`.

    Args:
        run: the run folder.
        total_steps, done: optimizer steps.
        attempts: steps that were tried so far, skipped ones included.
        silent: write nothing: of several processes one reports.
    """

    def __init__(self, run: Path, total_steps: int, done: int, attempts: int, silent: bool = False) -> None:
        self._total_steps = total_steps
        self._metrics = MetricsLog(run, done, attempts, tensorboard_installed(), silent)
        self._line = ProgressLine(total_steps, done, silent)
        self._stack = ExitStack()
        self._trouble: str | None = None

    @property
    def path(self) -> Path:
        """Of the metrics."""
        return self._metrics.path

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds a line to the metrics."""
        self._metrics.write(kind, step, **values)

    def flush(self) -> None:
        """Hands the metrics to the operating system, so that they outlive a killed process."""
        trouble = self._metrics.flush()
        if trouble != self._trouble and trouble is not None:
            self.say(f"{trouble}; the lines are kept for later")
        self._trouble = trouble

    def say(self, text: str) -> None:
        """A sentence for the user."""
        self._line.say(text)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._line.update(step)

    def report(self, step: int, summary: str, step_seconds: float) -> None:
        """Shows the user where the run stands."""
        self._line.update(step, summary, (self._total_steps - step) * step_seconds)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._metrics)
        self._stack.enter_context(self._line)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
