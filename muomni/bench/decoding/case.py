"""A case of decoding, and what every backend does with it: greedy decoding of one set of prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from muomni.bench.decoding.models import Weights
from muomni.config.base import Frozen

Implementation = Literal["muomni", "transformers", "ctranslate2", "llama.cpp"]
BASELINE = "as it is"


class InferCase(Frozen):
    """One configuration to decode with.

    Attributes:
        name: shown in tables.
        implementation: the library.
        model: the folder or file it loads.
        task: the file of prompts, see `models.write_task`.
        weights: fp32, bf16 or int8; for llama.cpp int8 is Q8_0.
        batch: the first so many prompts, together.
        cache: keys and values are kept; `static` is transformers' preallocated cache.
        runner: of μOmni's steps: `auto` is what `MuOmni` chooses; `compiled` compiles all of them before anything is
            timed, which is part of the time to load and of the first run.
        attention: backend of eager steps.
        threads: of the computation.
        calls: the public call is timed too, where the backend has one.
        forced: file of the reference's tokens and logits to compare with; empty for none.
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
    """The prompts of a case.

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


class Backend(Protocol):
    """A library with a case's model loaded; each module of `backends` has a class of this name and signature.

    Attributes:
        settings: versions and choices that the measurements depend on.
        call: (new) to the seconds of the call that the library's users make; None where it is not timed.

    Raises:
        ConfigError: the library is not installed or does not load this model.
    """

    settings: str
    call: Callable[[int], float] | None

    def __init__(self, case: InferCase, task: Task) -> None: ...

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Greedy decoding of rows of equal length, without ends."""

    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """(count, V) logits after each of the last `count` ids."""


def case_name(settings: Mapping[str, Any]) -> str:
    """The name of the case that differs from the baseline by these fields."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or BASELINE


def read_task(case: InferCase) -> Task:
    """The case's part of the file of `models.write_task` wrote."""
    values = json.loads(Path(case.task).read_text(encoding="utf-8"))
    return Task(values["ids"][: case.batch], values["texts"], values["new"])
