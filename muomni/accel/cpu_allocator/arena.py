"""The arena: a region of memory for the large tensors of training on a CPU, apart from the rest of the process.

A step allocates and frees blocks of the same sizes again and again. In the C library's heap, small blocks come to lie
in the gaps that large blocks left, so the next large block does not fit and the heap grows: a quarter more memory after
a few steps, and more with every hundred. In a region of their own large blocks find their gaps again: memory is the
same after step 10 and step 10,000, and it can be forecast (`arena_simulator` does the same in Python).

`arena.cpp` is compiled once with the machine's compiler against the headers that come with torch, in a second or two.
Without a compiler, and elsewhere than on Linux, there is no arena.
"""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from muomni.ops.cpp_build import NO_COMPILER, CompilationError, compiled, find_compiler

_SOURCE = Path(__file__).with_name("arena.cpp")
_OPTIONS = ("-O2", "-std=c++20", "-fPIC", "-shared", "-w")
# Addresses that are set aside, over the memory there is: they cost nothing until they are written to.
_TIMES, _LEAST = 4, 1 << 30


@dataclass(frozen=True)
class Arena:
    """The compiled arena, loaded; torch does not use it yet."""

    functions: ctypes.CDLL

    def install(self) -> bool:
        """Makes torch take the memory of tensors from the arena from now on, for good.

        Returns:
            Whether the system gave the addresses.
        """
        import psutil

        addresses = _TIMES * psutil.virtual_memory().total
        while addresses >= _LEAST:
            if self.functions.muomni_arena_install(addresses, True):
                return True
            addresses //= 2  # fewer are allowed (ulimit -v)
        return False

    def usage(self) -> tuple[int, int, int]:
        """Bytes in blocks, bytes to the end of the last block, and the peak of these."""
        sizes = (ctypes.c_uint64 * 3)()
        self.functions.muomni_arena_usage(sizes)
        return sizes[0], sizes[1], sizes[2]


def load() -> Arena | str:
    """The arena, or why there is none here."""
    if not sys.platform.startswith("linux"):
        return f"there is no arena on {sys.platform}"
    compiler = find_compiler()
    if compiler is None:
        return NO_COMPILER
    root = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    command = [
        *compiler,
        *_OPTIONS,
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        f'-DMUOMNI_TORCH="{torch.__version__}"',
        f"-I{root / 'include'}",
    ]
    try:
        return compiled("arena", "the arena", [_SOURCE], command, (f"-L{root / 'lib'}", "-lc10"), _open)
    except CompilationError as error:
        return str(error)


def _open(path: Path, _: str) -> Arena:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"the compiled arena does not load: {error}") from None
    functions.muomni_arena_install.argtypes = (ctypes.c_size_t, ctypes.c_bool)
    functions.muomni_arena_install.restype = ctypes.c_bool
    functions.muomni_arena_usage.argtypes = (ctypes.POINTER(ctypes.c_uint64),)
    functions.muomni_arena_usage.restype = None
    return Arena(functions)
