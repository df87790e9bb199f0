"""One case in a process of its own, so that its peak memory is its own: `python -m muomni.bench.worker`.

It reads one JSON object a line and answers with one: `{"case": {...}}` builds and warms up,
`{"steps": n}` takes n steps. Between commands it sleeps, so that cases can take turns.
"""

import json
import sys
import time
from typing import Any

WARM_UP_STEPS = 2


def main() -> None:
    """Serves commands until standard input ends."""
    # Whatever a library prints must not get between the answers.
    answers = sys.stdout
    sys.stdout = sys.stderr
    step = None
    for line in sys.stdin:
        command = json.loads(line)
        if "case" in command:
            from muomni.bench.cases import TrainCase, build, fingerprint_gradients

            case = TrainCase.model_validate(command["case"])
            began = time.perf_counter()
            built = build(case)
            step = built.step
            gradients = fingerprint_gradients(built)
            float(step())
            first = time.perf_counter() - began
            for _ in range(WARM_UP_STEPS):
                float(step())
            answer: dict[str, Any] = {"first_step_s": first, "gradients": gradients}
        else:
            if step is None:
                raise RuntimeError("no case was set up")
            _reset_peak()
            times = []
            for _ in range(command["steps"]):
                began = time.perf_counter()
                loss = float(step())  # waits for the device
                times.append(time.perf_counter() - began)
            answer = {"times_s": times, "peak_bytes": _peak(), "loss": loss}
        print(json.dumps(answer), file=answers, flush=True)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:  # not Linux: the peak is then that of the whole process
            return


def _peak() -> int:
    """Bytes at most: allocated by torch on a GPU, resident in the process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
