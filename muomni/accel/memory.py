"""How much memory is in use."""

from dataclasses import dataclass
from typing import Any

import torch

MIB = 1024 * 1024


@dataclass(frozen=True)
class Memory:
    """Bytes in use now and at most so far: of the device's allocator on a GPU, of the process on a CPU."""

    kind: str
    now: int
    peak: int

    def as_dict(self) -> dict[str, Any]:
        return {f"{self.kind}_mib": round(self.now / MIB, 1), f"{self.kind}_peak_mib": round(self.peak / MIB, 1)}

    def __str__(self) -> str:
        return f"{self.kind} {self.now / MIB:,.0f} MiB (peak {self.peak / MIB:,.0f})"


def memory_in_use(device: torch.device) -> Memory:
    """Memory of this process: allocated by torch on a GPU, resident set size on a CPU."""
    if device.type == "cuda":
        return Memory("gpu", torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    import psutil

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Memory("rss", psutil.Process().memory_info().rss, peak)
