"""Read bandwidth of this machine's memory, which bounds decoding. Measured in turns with the cases."""

import time
from typing import Any

_BYTES = 256 << 20
# More than a GPU's caches hold, and long beside its launches.
_GPU_BYTES = 2 << 30
_REPEATS = 4


class Bandwidth:
    """Reads 256 MiB of random numbers (a GPU 2 GiB), for `accel.measurements.worker`.

    A host may keep equal pages only once, so the numbers differ. On a CPU the buffer is numpy's, which asks the system
    for huge pages: with them reading is fastest, so the share of the bandwidth that a case reaches is not flattered.

    Args:
        threads: readers.
    """

    def __init__(self, threads: int) -> None:
        import numpy as np
        import torch

        torch.set_num_threads(threads)
        if torch.cuda.is_available():
            self._bytes = _GPU_BYTES
            self._buffer = torch.rand(self._bytes // 4, device="cuda")
        else:
            self._bytes = _BYTES
            self._buffer = torch.from_numpy(np.random.default_rng(0).random(_BYTES // 4, dtype=np.float32))
        self.first: dict[str, Any] = {}

    def turn(self) -> dict[str, Any]:
        """`gb_per_s`: the best of a few reads by each of two kernels, in 10⁹ bytes."""
        import torch

        best = float("inf")
        for _ in range(_REPEATS):
            began = time.perf_counter()
            float(torch.dot(self._buffer, self._buffer))  # waits for the device
            middle = time.perf_counter()
            float(self._buffer.max())
            best = min(best, middle - began, time.perf_counter() - middle)
        return {"gb_per_s": self._bytes / best / 1e9}
