"""A model that decoding is measured on."""

import statistics
import time
from importlib import import_module
from typing import Any, Self

from muomni.bench.decoding.case import Backend, Decoded, InferCase, read_task
from muomni.bench.decoding.fidelity import fidelity

_LEAST_S = 0.4
_MOST_REPEATS = 15
_SETTLE_S = 0.5


class InferSubject:
    """A case for `accel.measurements.worker`.

    Attributes:
        first: `load_s`; `tokens` of a first run; `settings`; `fidelity` to the reference where the case names one.

    Raises:
        ConfigError: the library is not installed or does not load this model.
    """

    def __init__(self, case: InferCase) -> None:
        self._task = task = read_task(case)
        began = time.perf_counter()
        module = import_module(f"muomni.bench.decoding.backends.{case.implementation.replace('.', '_')}")
        self._backend: Backend = module.Backend(case, task)
        loaded = time.perf_counter()
        tokens = self._backend.decode(task.ids, task.new).tokens
        self.first: dict[str, Any] = {
            "load_s": loaded - began,
            "first_run_s": time.perf_counter() - loaded,
            "tokens": tokens,
            "fidelity": fidelity(self._backend.logits, case.forced) if case.forced else None,
            "settings": self._backend.settings,
        }
        if self._backend.call is not None:
            self._backend.call(task.new)
            time.sleep(_SETTLE_S)  # an engine may take a faster runner once that is made
            self._backend.call(task.new)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Of the fields of a case, as JSON values."""
        return cls(InferCase.model_validate(fields))

    def turn(self, calls: bool = True) -> dict[str, Any]:
        """Medians over as many runs as fill some tenths of a second; `public_s` where the library has such a call."""
        runs: list[Decoded] = []
        public: list[float] = []
        began = time.perf_counter()
        while not runs or (time.perf_counter() - began < _LEAST_S and len(runs) < _MOST_REPEATS):
            runs.append(self._backend.decode(self._task.ids, self._task.new))
            if calls and self._backend.call is not None:
                public.append(self._backend.call(self._task.new))
        times = {
            key: statistics.median(getattr(run, key) for run in runs) for key in ("prefill_s", "decode_s", "call_s")
        }
        return times | {"public_s": statistics.median(public) if public else None}
