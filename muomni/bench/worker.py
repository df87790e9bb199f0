"""One case in a process of its own, so that its peak memory is its own: `python -m muomni.bench.worker`.

The first command, `{"kind": ..., "case": {...}}`, sets the case up; every other is a turn, whose keys go to the case
and whose answer holds the turn's peak memory too. Between commands the process sleeps, so that cases can take turns.
"""

import sys
from collections.abc import Callable
from typing import Any

from muomni.accel.measurements.turns import Answer, Subject, Worker
from muomni.child_process import serve


class BenchWorker(Worker):
    """A worker whose turns also tell their peak memory."""

    def turn(self, subject: Subject, command: dict[str, Any]) -> Answer:
        """The answer to a turn, with `peak_bytes`."""
        reset_peak()
        return super().turn(subject, command) | {"peak_bytes": peak_bytes()}


def set_up(kind: str, case: dict[str, Any]) -> Subject:
    """The subject of a case."""
    return _OPEN[kind](case)


def _train(case: dict[str, Any]) -> Subject:
    from muomni.bench.training.case import TrainCase, TrainSubject

    return TrainSubject(TrainCase.model_validate(case))


def _infer(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.case import InferCase
    from muomni.bench.decoding.subject import InferSubject

    return InferSubject(InferCase.model_validate(case))


def _judge(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.fidelity import Judge

    return Judge(**case)


def _bandwidth(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.bandwidth import Bandwidth

    return Bandwidth(**case)


def _write(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.models import Written

    return Written(**case)


def _scaling(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.scaling import ScalingSubject

    return ScalingSubject(**case)


def _speculation(case: dict[str, Any]) -> Subject:
    from muomni.bench.decoding.speculation import SpeculationSubject

    return SpeculationSubject(**case)


def _speech(case: dict[str, Any]) -> Subject:
    from muomni.bench.speech import SpeechCase, SpeechSubject

    return SpeechSubject(SpeechCase.model_validate(case))


_OPEN: dict[str, Callable[[dict[str, Any]], Subject]] = {
    "train": _train,
    "infer": _infer,
    "judge": _judge,
    "bandwidth": _bandwidth,
    "write": _write,
    "scaling": _scaling,
    "speculation": _speculation,
    "speech": _speech,
}


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
    serve(BenchWorker(set_up))
