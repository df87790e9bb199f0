"""How fast this machine reads memory: what decoding is bound by. Measured in turns with the cases."""

import time
from typing import Any

_BYTES = 256 << 20
_REPEATS = 4


class Bandwidth:
    """Reads 256 MiB of random numbers, for `muomni.bench.worker`; a host may keep equal pages only once.

    The buffer is numpy's, which asks the system for huge pages: with them reading is fastest, so the share of
    the bandwidth that a case reaches is not flattered.

    Args:
        threads: that read together.
    """

    def __init__(self, threads: int) -> None:
        import numpy as np
        import torch

        torch.set_num_threads(threads)
        self._buffer = torch.from_numpy(np.random.default_rng(0).random(_BYTES // 4, dtype=np.float32))
        self.first: dict[str, Any] = {}

    def turn(self) -> dict[str, Any]:
        """`gb_per_s`: the best of a few reads by each of two kernels, in 10⁹ bytes."""
        import torch

        best = float("inf")
        for _ in range(_REPEATS):
            began = time.perf_counter()
            torch.dot(self._buffer, self._buffer)
            middle = time.perf_counter()
            self._buffer.max()
            best = min(best, middle - began, time.perf_counter() - middle)
        return {"gb_per_s": _BYTES / best / 1e9}
