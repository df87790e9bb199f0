"""What is measured: greedy decoding of one set of prompts, done one way."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from muomni.bench.infer_judge import fidelity
from muomni.bench.infer_weights import Weights
from muomni.config.base import Frozen

Implementation = Literal["muomni", "transformers", "ctranslate2", "llama.cpp"]
_LEAST_S = 0.4
_MOST_REPEATS = 15


class InferCase(Frozen):
    """One way to decode.

    Attributes:
        name: shown in tables.
        implementation: whose.
        model: the folder or file that it loads.
        task: the file of prompts, see `infer_weights.write_task`.
        weights: fp32, bf16 or int8; for llama.cpp int8 is Q8_0.
        batch: the first so many prompts, together.
        cache: keys and values are kept; `static` is transformers' preallocated cache.
        runner: of μOmni's steps: `auto` is what `MuOmni` takes by itself.
        attention: backend of eager steps.
        new: tokens per row; 0 takes the task's.
        threads: of the computation.
        forced: file of the reference's tokens and logits to be compared with; empty for none.
    """

    name: str
    implementation: Implementation = "muomni"
    model: str
    task: str
    weights: Weights = "fp32"
    batch: int = 1
    cache: Literal["on", "off", "static"] = "on"
    runner: Literal["auto", "eager", "native"] = "auto"
    attention: Literal["sdpa", "reference", "flex"] = "sdpa"
    threads: int
    forced: str = ""


@dataclass(frozen=True)
class Decoded:
    """One run over all rows.

    Attributes:
        tokens: (B, N) ids.
        prefill_s: until the first tokens were known.
        decode_s: seconds of the other N - 1 steps.
        call_s: everything.
    """

    tokens: list[list[int]]
    prefill_s: float
    decode_s: float
    call_s: float


class Decoder(Protocol):
    """A case's way to decode.

    Attributes:
        settings: versions and choices that the figures depend on.
    """

    settings: str

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Greedy decoding of rows of equal length, without ends."""

    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32] | None:
        """(count, V) logits after each of the last `count` ids; None where the library does not give them."""


class PublicCall(Protocol):
    """What a decoder has besides when its users call something else than what `decode` does."""

    def call(self, texts: Sequence[str], new: int) -> float:
        """Seconds of one whole call on texts."""


def open_decoder(case: InferCase, length: int) -> Decoder:
    """Loads a case's model.

    Args:
        length: tokens that a row may grow to.

    Raises:
        ConfigError: the library is not installed or does not take this model.
    """
    if case.implementation == "llama.cpp":
        from muomni.bench.peers_llama import LlamaCpp

        return LlamaCpp(case, length)
    if case.implementation == "ctranslate2":
        from muomni.bench.peers_ctranslate2 import CTranslate2

        return CTranslate2(case)
    if case.implementation == "transformers":
        from muomni.bench.peers_transformers import Transformers

        return Transformers(case, length)
    from muomni.bench.infer_ours import Ours

    return Ours(case, length)


class InferSubject:
    """A case for `muomni.bench.worker`.

    Attributes:
        first: `load_s`; `tokens` of a first run; `settings`; where asked `fidelity` to the reference.
    """

    def __init__(self, case: InferCase) -> None:
        task = json.loads(Path(case.task).read_text(encoding="utf-8"))
        self._texts: list[str] = task["texts"][: case.batch]
        self._ids: list[list[int]] = task["ids"][: case.batch]
        self._new: int = task["new"]
        began = time.perf_counter()
        self._decoder = open_decoder(case, len(self._ids[0]) + self._new)
        loaded = time.perf_counter()
        tokens = self._decoder.decode(self._ids, self._new).tokens
        self.first: dict[str, Any] = {
            "load_s": loaded - began,
            "first_run_s": time.perf_counter() - loaded,
            "tokens": tokens,
            "settings": self._decoder.settings,
        }
        if case.forced:
            self.first["fidelity"] = fidelity(self._decoder.logits, case.forced)

    def turn(self, calls: bool = True) -> dict[str, Any]:
        """Medians over as many runs as fill some tenths of a second; `public_s` where the library has such a call."""
        runs: list[Decoded] = []
        public: list[float] = []
        call = getattr(self._decoder, "call", None) if calls else None
        began = time.perf_counter()
        while not runs or (time.perf_counter() - began < _LEAST_S and len(runs) < _MOST_REPEATS):
            runs.append(self._decoder.decode(self._ids, self._new))
            if call is not None:
                public.append(call(self._texts, self._new))
        return {
            "prefill_s": statistics.median(run.prefill_s for run in runs),
            "decode_s": statistics.median(run.decode_s for run in runs),
            "call_s": statistics.median(run.call_s for run in runs),
            "public_s": statistics.median(public) if public else None,
        }
