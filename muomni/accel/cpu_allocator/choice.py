"""The allocator of tensors on a CPU, from which training there gains most besides fast kernels.

A training step allocates and frees the same gigabytes each time. glibc gives large blocks back to the
system as soon as they are freed, and the system hands them out again page by page, each one cleared: at
100 M parameters 350,000 page faults a step. Kept, they cost nothing the second time. The process's
memory then stays at its peak until it ends, which in training it returns to at every step anyway.

`retain` tells glibc to keep them. `arena` keeps them in a region for large tensors alone (`accel.cpu_allocator.arena`),
which takes less memory: in the heap small blocks break up the gaps of large ones.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from muomni.accel.cpu_allocator import arena
from muomni.errors import ConfigError

Name = Literal["auto", "arena", "retain", "system"]
Mode = Literal["arena", "retain", "system"]

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class AllocatorChoice:
    """The allocator of a run, and why it was taken."""

    mode: Mode
    reason: str

    @property
    def words(self) -> str:
        """For the log."""
        what = {
            "arena": "large tensors in an arena",
            "retain": "freed memory retained",
            "system": "freed memory given back to the system",
        }
        return f"{what[self.mode]}: {self.reason}"


def choose(asked: Name, device: torch.device) -> AllocatorChoice:
    """`auto` takes the arena on a CPU where it can be compiled, else retains freed memory where that is possible.

    Raises:
        ConfigError: the named one is not available here.
    """
    if asked == "system":
        return AllocatorChoice("system", "as asked")
    if asked == "auto" and device.type != "cpu":
        return AllocatorChoice("system", f"tensors are in the memory of {device.type}")
    missing = ""
    if asked in ("auto", "arena"):
        loaded = arena.load() if is_glibc() else "the C library is not glibc"
        if isinstance(loaded, arena.Arena):
            return AllocatorChoice("arena", "as asked" if asked == "arena" else "a step reuses its memory without gaps")
        if asked == "arena":
            raise ConfigError(f'allocator = "arena": {loaded}; use "retain" or "system"')
        missing = loaded
    if not is_glibc():
        if asked == "retain":
            raise ConfigError('allocator = "retain": only glibc can be told to keep freed memory; use "system"')
        return AllocatorChoice("system", "the C library is not glibc")
    return AllocatorChoice("retain", "as asked" if asked == "retain" else f"a step needs it again; no arena, {missing}")


def apply(choice: AllocatorChoice) -> None:
    """Sets the allocator of torch and of this process's C library, for good: large blocks live where they were made.

    Raises:
        ConfigError: they refuse.
    """
    if choice.mode == "system":
        return
    library = ctypes.CDLL(None)
    # No block has a mapping of its own, and the heap's end is not given back (-1: whatever its size).
    if not (library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1)):
        raise ConfigError('the C library refuses to keep freed memory; set "allocator" to "system"')
    if choice.mode == "arena":
        loaded = arena.load()
        if isinstance(loaded, str) or not loaded.install():
            reason = loaded if isinstance(loaded, str) else "the system gives no addresses for it (ulimit -v)"
            raise ConfigError(f'the arena for tensors is not available: {reason}; set "allocator" to "retain"')


def is_glibc() -> bool:
    """Whether this process's allocator is the GNU C library's and not one put before it."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "gnu_get_libc_version") and not _is_replaced()


def _is_replaced() -> bool:
    """jemalloc, tcmalloc and mimalloc, when loaded first, answer to `malloc` but not to glibc's settings."""
    try:
        with open("/proc/self/maps") as file:
            loaded = file.read()
    except OSError:
        return False
    return any(name in loaded for name in ("jemalloc", "tcmalloc", "mimalloc"))
