"""Freed memory stays with the process: what training on a CPU gains most from beside fast kernels.

A training step allocates and frees the same gigabytes each time. glibc gives large blocks back to the
system as soon as they are freed, and the system hands them out again page by page, each one cleared: at
100 M parameters 350,000 page faults a step. Kept, they cost nothing the second time. The process's
memory then stays at its peak until it ends, which in training it returns to at every step anyway.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from muomni.errors import ConfigError

Name = Literal["auto", "keep", "system"]

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class Choice:
    """Whether freed memory is kept, and why."""

    keep: bool
    reason: str


def choose(asked: Name, device: torch.device) -> Choice:
    """`auto` keeps memory where a CPU computes and the C library is glibc.

    Raises:
        ConfigError: keeping was named and the C library cannot be told to.
    """
    if asked == "system":
        return Choice(False, "as asked")
    if asked == "auto" and device.type != "cpu":
        return Choice(False, f"tensors are in the memory of {device.type}")
    if not is_glibc():
        if asked == "keep":
            raise ConfigError('allocator = "keep": only glibc can be told to keep freed memory; use "system"')
        return Choice(False, "the C library is not glibc")
    return Choice(True, "as asked" if asked == "keep" else "a step needs it again")


def apply(choice: Choice) -> None:
    """Tells the C library of this process; for good, since large blocks live where they were made.

    Raises:
        ConfigError: the C library refuses.
    """
    if not choice.keep:
        return
    library = ctypes.CDLL(None)
    # No block has a mapping of its own, and the heap's end is not given back (-1: whatever its size).
    if not (library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1)):
        raise ConfigError('the C library refuses to keep freed memory; set "allocator" to "system"')


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
