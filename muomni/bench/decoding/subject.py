"""A model that decoding is measured on."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from muomni.bench.decoding.case import _LEAST_S, _MOST_REPEATS, _SETTLE_S, Decoded, Decoder, InferCase, Task, read_task
from muomni.bench.decoding.fidelity import fidelity


def open_decoder(case: InferCase, task: Task) -> Decoder:
    """Loads a case's model.

    Raises:
        ConfigError: the library is not installed or does not take this model.
    """
    if case.implementation == "llama.cpp":
        from muomni.bench.decoding.backends.llama_cpp import LlamaCpp

        return LlamaCpp(case, task)
    if case.implementation == "ctranslate2":
        from muomni.bench.decoding.backends.ctranslate2 import CTranslate2

        return CTranslate2(case)
    if case.implementation == "transformers":
        from muomni.bench.decoding.backends.transformers import Transformers

        return Transformers(case, task)
    from muomni.bench.decoding.backends.muomni import Ours

    return Ours(case, task)


class InferSubject:
    """A case for `muomni.bench.worker`.

    Attributes:
        first: `load_s`; `tokens` of a first run; `settings`; where asked `fidelity` to the reference.
    """

    def __init__(self, case: InferCase) -> None:
        self._task = task = read_task(case)
        began = time.perf_counter()
        self._decoder = open_decoder(case, task)
        loaded = time.perf_counter()
        tokens = self._decoder.decode(task.ids, task.new).tokens
        self.first: dict[str, Any] = {
            "load_s": loaded - began,
            "first_run_s": time.perf_counter() - loaded,
            "tokens": tokens,
            "fidelity": fidelity(self._decoder.logits, case.forced) if case.forced else None,
            "settings": self._decoder.settings,
        }
        self._call: Callable[[int], float] | None = getattr(self._decoder, "call", None)
        if self._call is not None:
            self._call(task.new)
            time.sleep(_SETTLE_S)  # an engine may take a faster runner once that is made
            self._call(task.new)

    def turn(self, calls: bool = True) -> dict[str, Any]:
        """Medians over as many runs as fill some tenths of a second; `public_s` where the library has such a call."""
        runs: list[Decoded] = []
        public: list[float] = []
        began = time.perf_counter()
        while not runs or (time.perf_counter() - began < _LEAST_S and len(runs) < _MOST_REPEATS):
            runs.append(self._decoder.decode(self._task.ids, self._task.new))
            if calls and self._call is not None:
                public.append(self._call(self._task.new))
        return {
            "prefill_s": statistics.median(run.prefill_s for run in runs),
            "decode_s": statistics.median(run.decode_s for run in runs),
            "call_s": statistics.median(run.call_s for run in runs),
            "public_s": statistics.median(public) if public else None,
        }
