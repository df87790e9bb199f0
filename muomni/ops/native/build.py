"""Finds or compiles the native decoder, and loads it; see `muomni.ops.cpp_build`."""

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

from muomni.ops.cpp_build import NO_COMPILER, CompilationError, compiled, find_compiler

_SOURCES = Path(__file__).parent
_OPTIONS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")


@dataclass(frozen=True)
class Library:
    """The compiled decoder, loaded.

    Attributes:
        functions: the library; calls through it release the interpreter lock.
        path: where it lies.
        instructions: which code was compiled: "avx512-vnni-bf16", "avx512-vnni", "avx2" or "portable".
        note: something the user may want to know, for example that it could not be kept; or empty.
    """

    functions: ctypes.CDLL
    path: Path
    instructions: str
    note: str = ""


@dataclass(frozen=True)
class Unavailable:
    """The native decoder cannot be had here, and why."""

    reason: str


def load(defines: tuple[str, ...] = ()) -> Library | Unavailable:
    """Finds or compiles the library; the first time on a machine takes some seconds.

    Args:
        defines: macros, for tests: `MUOMNI_PLAIN` leaves all intrinsics out.
    """
    compiler = find_compiler()
    if compiler is None:
        return Unavailable(NO_COMPILER)
    # Apple's and older ARM compilers know -mcpu=native only.
    target = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = [*compiler, target, *_OPTIONS, *(f"-D{name}" for name in defines)]
    sources = [_SOURCES / "decoder.cpp", *sorted(_SOURCES.glob("*.h"))]
    try:
        return compiled("decoder", "the native decoder", sources, command, (), _open)
    except CompilationError as error:
        return Unavailable(str(error))


def _open(path: Path, note: str) -> Library:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"the compiled decoder does not load: {error}") from None
    functions.muomni_instructions.restype = ctypes.c_char_p
    return Library(functions, path, functions.muomni_instructions().decode(), note)
