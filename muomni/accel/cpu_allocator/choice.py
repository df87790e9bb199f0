"""Where tensors on a CPU have their memory: what training there gains most from beside fast kernels.

A training step allocates and frees the same gigabytes each time. glibc gives large blocks back to the
system as soon as they are freed, and the system hands them out again page by page, each one cleared: at
100 M parameters 350,000 page faults a step. Kept, they cost nothing the second time. The process's
memory then stays at its peak until it ends, which in training it returns to at every step anyway.

`keep` tells glibc to keep them. `pool` keeps them in a region for large tensors alone (`accel.cpu_allocator.arena`),
which takes less memory: in the heap small blocks break up the gaps of large ones.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from muomni.accel.cpu_allocator import arena
from muomni.errors import ConfigError

Name = Literal["auto", "pool", "keep", "system"]
Mode = Literal["pool", "keep", "system"]

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class Choice:
    """Where tensors have their memory, and why."""

    mode: Mode
    reason: str

    @property
    def words(self) -> str:
        """For the log."""
        what = {
            "pool": "large tensors in a pool of their own",
            "keep": "freed memory kept",
            "system": "freed memory as the system has it",
        }
        return f"{what[self.mode]}: {self.reason}"


def choose(asked: Name, device: torch.device) -> Choice:
    """`auto` takes the pool where a CPU computes and it can be compiled, else keeps memory where that is possible.

    Raises:
        ConfigError: the named one cannot be had here.
    """
    if asked == "system":
        return Choice("system", "as asked")
    if asked == "auto" and device.type != "cpu":
        return Choice("system", f"tensors are in the memory of {device.type}")
    missing = ""
    if asked in ("auto", "pool"):
        found = arena.load() if is_glibc() else "the C library is not glibc"
        if isinstance(found, arena.Pool):
            return Choice("pool", "as asked" if asked == "pool" else "a step finds its memory again, without gaps")
        if asked == "pool":
            raise ConfigError(f'allocator = "pool": {found}; use "keep" or "system"')
        missing = found
    if not is_glibc():
        if asked == "keep":
            raise ConfigError('allocator = "keep": only glibc can be told to keep freed memory; use "system"')
        return Choice("system", "the C library is not glibc")
    return Choice("keep", "as asked" if asked == "keep" else f"a step needs it again; no pool, {missing}")


def apply(choice: Choice) -> None:
    """Tells torch and the C library of this process; for good, since large blocks live where they were made.

    Raises:
        ConfigError: they refuse.
    """
    if choice.mode == "system":
        return
    library = ctypes.CDLL(None)
    # No block has a mapping of its own, and the heap's end is not given back (-1: whatever its size).
    if not (library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1)):
        raise ConfigError('the C library refuses to keep freed memory; set "allocator" to "system"')
    if choice.mode == "pool":
        found = arena.load()
        if isinstance(found, str) or not found.install():
            reason = found if isinstance(found, str) else "the system gives no addresses for it (ulimit -v)"
            raise ConfigError(f'the pool for tensors cannot be had: {reason}; set "allocator" to "keep"')


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
