"""CTranslate2 as a peer, through its `Generator`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.bench.decoding.case import Decoded, InferCase, Task
from muomni.bench.decoding.models import NOT_INSTALLED
from muomni.errors import ConfigError


class Backend:
    """A loaded model; it takes and gives tokens by name.

    Its loop is its own, so the time of a first token is when its callback is told of it.

    Args:
        case: `model` is a folder of its converter.
        task: unused: the library's users call what `decode` calls.
    """

    call = None

    def __init__(self, case: InferCase, task: Task) -> None:  # noqa: ARG002 - as all backends
        try:
            import ctranslate2
        except ImportError:
            raise ConfigError(f"ctranslate2 {NOT_INSTALLED}") from None
        kind = "int8" if case.weights == "int8" else "float32"
        try:
            self._generator = ctranslate2.Generator(
                case.model, device="cpu", compute_type=kind, inter_threads=1, intra_threads=case.threads
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"CTranslate2 does not load this model: {error}") from None
        vocabulary = Path(case.model, "vocabulary.json").read_text(encoding="utf-8")
        self._names: list[str] = json.loads(vocabulary)
        self.settings = f"ctranslate2 {ctranslate2.__version__}, {self._generator.compute_type}"

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """One call of `generate_batch`."""
        names = [[self._names[i] for i in row] for row in prompts]
        first: list[float] = []

        def on_token(_step: Any) -> bool:
            if not first:
                first.append(time.perf_counter())
            return False

        began = time.perf_counter()
        results = self._generator.generate_batch(
            names,
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=on_token,
        )
        call_s = time.perf_counter() - began
        prefill_s = first[0] - began
        tokens = [result.sequences_ids[0] for result in results]
        return Decoded(tokens, prefill_s, call_s - prefill_s, call_s)

    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """One forward pass over all of it."""
        out = self._generator.forward_batch([list(ids)], return_log_probs=False)
        return np.asarray(np.array(out)[0, -count:], np.float32)
