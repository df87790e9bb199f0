"""What a training run computes, behind the interface that the loop (`training.trainer`) drives.

`training.omni_task` is a model of text, media and speech; `training.codec.task` is the speech codec.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from muomni.accel.distributed import Group
from muomni.accel.memory.monitor import MemoryMonitor, MemoryReport
from muomni.training.checkpoint import Progress
from muomni.training.reporting.run_log import RunLog
from muomni.training.reporting.step_metrics import StepMetrics
from muomni.training.step import TrainStep


@dataclass(frozen=True)
class Window:
    """The steps since the last line of the log.

    Attributes:
        steps: one after the other, on the host, of all processes together.
        rates: how much was read in a second, by name.
        summary: mean losses and rates, for a person.
    """

    steps: Sequence[StepMetrics]
    rates: Mapping[str, float]
    summary: str


@dataclass(frozen=True)
class Validation:
    """What a validation gave.

    Attributes:
        score: lower is better; None where validation holds nothing of what is learnt.
        values: of the `val` line of the metrics.
        summary: for a person.
    """

    score: float | None
    values: Mapping[str, Any]
    summary: str


class Task(Protocol):
    """Everything about a run that depends on what is trained.

    Attributes:
        progress: where the run stands; the loop counts attempted and applied steps, the task the rest.
        total_steps: optimizer steps of the run.
        main_step: takes the optimizer steps; its counters are the run's.
        group: the processes of the run, which all drive their own task in the same order.
        monitor: of the memory.
        loss_unit: for the plot.
    """

    progress: Progress
    total_steps: int
    group: Group
    monitor: MemoryMonitor
    loss_unit: str

    @property
    def main_step(self) -> TrainStep:
        """The step whose counters are the run's."""

    def opening(self) -> list[str]:
        """Sentences for the user at the beginning: what is trained on what, and how."""

    def begin(self, log: RunLog) -> None:
        """Decides what only a measurement on the finished model can tell; called once before the first step."""

    def take_step(self, log: RunLog) -> None:
        """Takes the next optimizer step; its metrics stay on the device until `read_steps`."""

    def read_steps(self) -> list[StepMetrics]:
        """The metrics of the steps since the last call; waits for the device once."""

    def summarize(self, steps: Sequence[StepMetrics], seconds: float, log: RunLog) -> Window:
        """What these steps amount to; may write events.

        Args:
            steps: at least one, as `read_steps` gave them.
            seconds: they took.
            log: where events are reported.
        """

    def check(self, log: RunLog) -> None:
        """Raises where the run must end, such as for too much unreadable data; called after the log is written."""

    def validate(self, log: RunLog) -> Validation:
        """The losses over the validation data."""

    def sample(self) -> Sequence[tuple[str, str]]:
        """Prompts and texts that the model writes; empty for all processes but the first."""

    def save(self, *, best: bool) -> None:
        """Writes a checkpoint of `progress`.

        Raises:
            CheckpointError: it could not be written; earlier ones are untouched.
        """

    def memory_forecast(self, memory: MemoryReport) -> dict[str, Any] | None:
        """The forecast of the run's memory and its error; None where nothing is forecast for this task."""


def restore_step(step: TrainStep, counts: Sequence[int], scaler: Mapping[str, Any]) -> None:
    """Sets a step to a checkpoint's state.

    Args:
        step: as it was made.
        counts: its `applied`, `skipped` and `streak`.
        scaler: the state of its loss scaler.
    """
    counters = step.counters
    for counter, count in zip((counters.applied, counters.skipped, counters.streak), counts, strict=True):
        counter.fill_(count)
    step.scaler.load_state_dict(dict(scaler))
