"""Trials of step configurations: each in a child process, see `training.tune.subject`."""

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muomni.accel.device import free_memory, pick_device
from muomni.accel.measurements.turns import take_turns as ask_in_turns
from muomni.accel.measurements.worker import COMMAND
from muomni.accel.step_config import StepConfig
from muomni.child_process import ChildEndedError, ChildProcess
from muomni.config import Recipe, parse
from muomni.config.loader import merge
from muomni.errors import MuOmniError, TrainingError
from muomni.training.forecast.search import words

# Of the free memory, what a trial may take: other programs, longer documents and validation need some too.
HEADROOM = 0.9
_STEP_SECONDS, _LEAST_STEPS, _MOST_STEPS = 4.0, 3, 20
_WARM_UP_STEPS, _ROUNDS, _MOST_MICRO_BATCHES = 2, 3, 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """The result of trying a step configuration.

    Attributes:
        step: that was tried.
        step_s: seconds of each step; empty where it could not be taken.
        first_s: of the first step.
        peak: bytes of the process, or of the GPU.
        total_steps: of the run.
        reads_ahead: threads read the data.
        why_not: why it could not be taken.
        short: because of memory.
    """

    step: StepConfig
    step_s: tuple[float, ...] = ()
    first_s: float = 0.0
    peak: int = 0
    total_steps: int = 0
    reads_ahead: bool = False
    why_not: str | None = None
    short: bool = False

    @property
    def seconds(self) -> float:
        """Of a step, the median; infinite where none could be taken."""
        return statistics.median(self.step_s) if self.step_s else float("inf")

    @property
    def cost(self) -> float:
        """Seconds that the first step takes longer: compiling, if anything is compiled."""
        return max(0.0, self.first_s - self.seconds)

    def __str__(self) -> str:
        if self.why_not is not None:
            return f"{self.step}: {self.why_not}"
        return f"{self.step}: {self.seconds:.3g} s/step, {words(self.peak)}"


def with_keys(recipe: Recipe, keys: dict[str, Any], source: str) -> Recipe:
    """The recipe with some of its keys replaced; `source` names these in errors."""
    return parse(Recipe, merge(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), keys), source)


def with_step(recipe: Recipe, step: StepConfig) -> Recipe:
    """The recipe with a step configuration, to be tried: not tuned, and stopped where memory runs out."""
    return with_keys(recipe, {**step.fragment(StepConfig.of(recipe)), "tune": False, "on_oom": "stop"}, "a trial")


class Trials:
    """Tries step configurations of a recipe on its own data, one after the other.

    Args:
        recipe: whose steps are taken.
        tokenizer: its folder.
    """

    def __init__(self, recipe: Recipe, tokenizer: Path) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.device = pick_device(recipe.device)
        self.memory = int(free_memory(self.device) * HEADROOM)
        self._prepared = False

    def __call__(self, step: StepConfig, deadline: float) -> Trial:
        """Tries one.

        Args:
            step: which.
            deadline: of `time.monotonic`, after which the child is ended. The first one has to prepare the data, which
                is not counted.

        Raises:
            TrainingError: the child ended for no reason that is known.
        """
        command = _command(with_step(self.recipe, step), str(self.tokenizer))
        command["memory"] = self.memory if self.device.type == "cpu" else None
        # The first one shows the progress of preparing the data.
        prepared, self._prepared = self._prepared, True
        try:
            with ChildProcess(COMMAND, stderr="kept" if prepared else "shown") as child:
                first = answer = child.ask(command, max(1.0, deadline - time.monotonic()) if prepared else None)
                if "refused" not in first:
                    turn = {"least": _LEAST_STEPS, "most": _MOST_STEPS, "seconds": _STEP_SECONDS}
                    answer = child.ask(turn, max(1.0, deadline - time.monotonic()) if prepared else None)
        except ChildEndedError as error:
            if error.timed_out:
                return Trial(step, why_not="not measured: the time for tuning is over")
            if error.code != -signal.SIGKILL:
                raise TrainingError(f"tuning: {step} {error}") from None
            answer = {"refused": "the system ended it: memory ran out", "short": True}
        if "refused" in answer:
            return Trial(step, why_not=answer["refused"], short=answer.get("short", False))
        peak = max(first["peak"], *answer["peak"])
        trial = Trial(
            step, tuple(answer["step_s"]), first["step_s"], peak, first["total_steps"], first["reads_ahead"]
        )  # fmt: skip
        if trial.peak > self.memory:
            limit = f"{words(trial.peak)}, more than {HEADROOM:.0%} of what is free ({words(self.memory)})"
            return replace(trial, step_s=(), why_not=limit, short=True)
        return trial


def take_turns(recipe: Recipe, steps: Sequence[StepConfig], say: Say) -> dict[StepConfig, list[float]]:
    """Seconds of a step of each configuration on random tokens, one for each of three rounds.

    The configurations take turns, so that what slows the machine for a while slows all of them. A step of many
    micro-batches is measured with a few of them, so the optimizer's share counts a little more than it will.

    Args:
        recipe: of text alone; its data are not read.
        steps: all of them are in memory at once; those that cannot be taken here are left out.
        say: is told what is going on.

    Raises:
        MuOmniError: none can be taken, or a child ended.
    """
    reasons: list[str] = []
    children: dict[StepConfig, ChildProcess] = {}
    with ExitStack() as stack:
        for step in steps:
            say(f"setting up {step}")
            few = step.replace(accumulation=min(step.accumulation, _MOST_MICRO_BATCHES))
            child = stack.enter_context(ChildProcess(COMMAND))
            answer = child.ask(_command(with_step(recipe, few), None))
            if "refused" not in answer:
                answer = child.ask({"least": _WARM_UP_STEPS})
            if "refused" in answer:
                reasons.append(f"{step}: {answer['refused']}")
                say(reasons[-1])
            else:
                children[step] = child
        answers = ask_in_turns(children, _ROUNDS, say, command={"least": 1})
    if not children:
        raise MuOmniError(f"no step configuration could be measured here: {'; '.join(reasons)}")
    parts = {step: step.accumulation / min(step.accumulation, _MOST_MICRO_BATCHES) for step in children}
    return {step: [turn["step_s"][0] * parts[step] for turn in turns] for step, turns in answers.items()}


def _command(recipe: Recipe, tokenizer: str | None) -> dict[str, Any]:
    dumped = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {
        "subject": "muomni.training.tune.subject:RecipeSubject",
        "recipe": dumped,
        "tokenizer": tokenizer,
        "memory": None,
    }
