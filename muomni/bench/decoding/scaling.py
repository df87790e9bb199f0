"""Decode speed over batch size and over context: one process, one model, every point in every turn."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from muomni.api.model import MuOmni
from muomni.bench.decoding.backends.muomni import make_case_runner
from muomni.bench.decoding.case import InferCase
from muomni.infer import Runner
from muomni.model import SlotCache

# Tokens of a prefill chunk: attention over a whole long prompt would be the peak of memory.
_CHUNK = 256


@dataclass(frozen=True)
class _Point:
    """A runner whose cache holds `context` tokens of `batch` rows."""

    batch: int
    context: int
    runner: Runner


class ScalingSubject:
    """For `accel.measurements.worker`.

    Args:
        model: a folder.
        weights: that it holds, fp32 or int8.
        runner: of the steps, `auto` or `eager`.
        points: (rows, tokens before the measured ones) each.
        steps: greedy tokens of a measurement.
        threads: of the computation.
    """

    def __init__(
        self, model: str, weights: str, runner: str, points: Sequence[Sequence[int]], steps: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._steps = steps
        loaded = MuOmni.from_pretrained(model, dtype=torch.float32)
        fields = {"name": "scaling", "model": "", "task": "", "weights": weights, "runner": runner, "threads": threads}
        case = InferCase.model_validate(fields)
        self._points = [self._fill(loaded, case.replace(batch=batch), context) for batch, context in points]
        self.first: dict[str, Any] = {}
        self.turn()

    @torch.inference_mode()
    def _fill(self, model: MuOmni, case: InferCase, context: int) -> _Point:
        thinker, length, batch = model.config.thinker, context + self._steps, case.batch
        cache = SlotCache(thinker, batch, length, model.dtype, model.device)
        runner, _ = make_case_runner(case, model, cache, length)
        draw = torch.Generator().manual_seed(0)
        for row in range(batch):
            for start in range(0, context, _CHUNK):
                positions = torch.arange(start, min(start + _CHUNK, context))
                tokens = torch.randint(thinker.vocab_size, positions.shape, generator=draw)
                runner.forward(tokens, torch.full_like(positions, row), positions, torch.tensor([len(tokens) - 1]))
        return _Point(batch, context, runner)

    @torch.inference_mode()
    def turn(self) -> dict[str, Any]:
        """`tokens_per_s` of all rows, one number a point."""
        speeds = []
        for point in self._points:
            rows = torch.arange(point.batch)
            began = time.perf_counter()
            point.runner.greedy(rows, rows, torch.full_like(rows, point.context), self._steps)
            speeds.append(point.batch * self._steps / (time.perf_counter() - began))
        return {"tokens_per_s": speeds}
