"""What is measured: greedy decoding of one set of prompts, done one way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from muomni.bench.decoding.models import Weights
from muomni.config.base import Frozen

Implementation = Literal["muomni", "transformers", "ctranslate2", "llama.cpp"]
_LEAST_S = 0.4
_MOST_REPEATS = 15
_SETTLE_S = 0.5


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
        runner: of μOmni's steps: `auto` is what `MuOmni` takes by itself; `compiled` compiles all of them before
            anything is timed, which is part of the time to load and of the first run.
        attention: backend of eager steps.
        threads: of the computation.
        calls: the public call is timed too, of cases that have one.
        forced: file of the reference's tokens and logits to be compared with; empty for none.
    """

    name: str
    implementation: Implementation = "muomni"
    model: str
    task: str
    weights: Weights = "fp32"
    batch: int = 1
    cache: Literal["on", "off", "static"] = "on"
    runner: Literal["auto", "eager", "native", "compiled"] = "auto"
    attention: Literal["sdpa", "reference", "flex"] = "sdpa"
    threads: int
    calls: bool = True
    forced: str = ""


@dataclass(frozen=True)
class Task:
    """What a case is to do.

    Attributes:
        ids: (B, T) prompts of its rows.
        texts: chat prompts of T tokens each, the first B those of `ids`, and more for further calls.
        new: N, tokens after each prompt.
    """

    ids: list[list[int]]
    texts: list[str]
    new: int

    @property
    def length(self) -> int:
        """Tokens that a row grows to."""
        return len(self.ids[0]) + self.new


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
    """A case's way to decode. With a method `call(new)`, it is also timed as its users call it: seconds, all told.

    Attributes:
        settings: versions and choices that the figures depend on.
    """

    settings: str

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Greedy decoding of rows of equal length, without ends."""

    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32] | None:
        """(count, V) logits after each of the last `count` ids; None where the library does not give them."""


def read_task(case: InferCase) -> Task:
    """The case's part of what `infer_weights.write_task` wrote."""
    values = json.loads(Path(case.task).read_text(encoding="utf-8"))
    return Task(values["ids"][: case.batch], values["texts"], values["new"])
