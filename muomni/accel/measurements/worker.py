"""What is timed, in a process of its own, so that its peak memory is its own: `python -m` this module.

The first command, `{"subject": "MODULE:NAME", ...}`, sets the subject up with its other keys; every other is a turn,
whose keys go to the subject and whose answer holds the turn's peak memory too. Between commands the process sleeps, so
that subjects can take turns. Importing this imports no torch: the memory of the process is that of its subject.
"""

import sys
import time
from abc import ABC, abstractmethod
from functools import reduce
from importlib import import_module
from typing import Any, Protocol

from muomni.child_process import serve
from muomni.errors import MemoryShortageError, UserError, first_line

COMMAND = (sys.executable, "-m", "muomni.accel.measurements.worker")
Answer = dict[str, Any]


class Subject(Protocol):
    """What is measured, set up.

    Attributes:
        first: the answer to setting it up.
    """

    first: Answer

    def turn(self, *args: Any, **command: Any) -> Answer:
        """Does what the command asks; everything in it and in the answer is a JSON value."""


class StepTimer(ABC):
    """A subject that takes steps.

    Attributes:
        first: the answer to setting it up.
    """

    first: Answer

    @abstractmethod
    def take(self) -> Answer:
        """Takes a step and waits for the device.

        Returns:
            `step_s`, its seconds, and what else is kept of every step.
        """

    def turn(self, least: int, most: int = 1, seconds: float = 0.0) -> Answer:
        """Takes steps: at least `least`, then more until `seconds` are over or there are `most`.

        Returns:
            A list of each value of `take`.
        """
        end = time.perf_counter() + seconds
        taken: list[Answer] = []
        while len(taken) < least or (time.perf_counter() < end and len(taken) < most):
            taken.append(self.take())
        return {key: [step[key] for step in taken] for key in taken[0]}


class Worker:
    """Answers commands, for `child_process.serve`.

    What cannot be measured here is answered with `refused`, the reason, and with `short` where memory ran out. Any
    other error is raised, and ends the process.
    """

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def __call__(self, command: dict[str, Any]) -> Answer:
        """The answer to one command."""
        try:
            if self._subject is None:
                self._subject = _find(command.pop("subject"))(**command)
                return self._subject.first
            reset_peak()
            return self._subject.turn(**command) | {"peak_bytes": peak_bytes()}
        except MemoryShortageError as error:
            return {"refused": first_line(error), "short": True}
        except UserError as error:
            return {"refused": str(error)}
        except (MemoryError, RuntimeError) as error:
            from muomni.accel.memory.out_of_memory import find_shortage

            if find_shortage(error, "forward") is None:
                raise
            return {"refused": f"memory ran out: {first_line(error)}", "short": True}


def _find(subject: str) -> Any:
    module, _, name = subject.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def reset_peak() -> None:
    """Forgets the peak so far, where the system lets one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # not Linux: the peak is then that of the whole process
        return


def peak_bytes() -> int:
    """Bytes at most: allocated by torch on a GPU, resident in the process on a CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    serve(Worker())
