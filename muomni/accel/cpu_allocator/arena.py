"""The pool: where training on a CPU has its large tensors, apart from everything else of the process.

A step allocates and frees blocks of the same sizes again and again. In the C library's heap the small things that a
program makes meanwhile come to lie in the gaps that large blocks have left, so that the next large block does not fit
and the heap grows: a quarter more memory after a few steps, and more with every hundred. In a region of their own
large blocks find their gaps again, memory is the same after step 10 and step 10,000, and it can be forecast: `model`
does the same in Python.

`arena.cpp` is compiled with the machine's compiler against the headers that come with torch, in a second or two, and
kept. Without a compiler, and elsewhere than on Linux, there is none.
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
class Pool:
    """The compiled pool, loaded; torch does not use it yet."""

    functions: ctypes.CDLL

    def install(self) -> bool:
        """Lets torch take the memory of tensors from the pool from now on, for good.

        Returns:
            Whether the system gave the addresses.
        """
        import psutil

        addresses = _TIMES * psutil.virtual_memory().total
        while addresses >= _LEAST:
            if self.functions.muomni_pool_install(addresses, True):
                return True
            addresses //= 2  # fewer are allowed (ulimit -v)
        return False

    def figures(self) -> tuple[int, int, int]:
        """Bytes in blocks, bytes to the end of the last block, and the most there were of these."""
        found = (ctypes.c_uint64 * 3)()
        self.functions.muomni_pool_figures(found)
        return found[0], found[1], found[2]


def load() -> Pool | str:
    """The pool, or why there is none here."""
    if not sys.platform.startswith("linux"):
        return f"there is no pool on {sys.platform}"
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
        return compiled("pool", "the pool", [_SOURCE], command, (f"-L{root / 'lib'}", "-lc10"), _open)
    except CompilationError as error:
        return str(error)


def _open(path: Path, _: str) -> Pool:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"the compiled pool does not load: {error}") from None
    functions.muomni_pool_install.argtypes = (ctypes.c_size_t, ctypes.c_bool)
    functions.muomni_pool_install.restype = ctypes.c_bool
    functions.muomni_pool_figures.argtypes = (ctypes.POINTER(ctypes.c_uint64),)
    functions.muomni_pool_figures.restype = None
    return Pool(functions)
