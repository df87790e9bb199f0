"""Compiles the native decoder once per source, compiler and CPU, and loads it.

The library lies in `$MUOMNI_CACHE/native`, `$XDG_CACHE_HOME/muomni/native` or `~/.cache/muomni/native`, named
by a hash of the sources, the options and everything the compiler predefines for this CPU (its version and
each instruction set are among that). It is written under another name and renamed, so neither two processes
at once nor a kill can leave half a library.
"""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from muomni.files import cache_home

_SOURCES = Path(__file__).parent
_OPTIONS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")
_TIMEOUT_SECONDS = 300
_STALE_SECONDS = 3600
_PARTIAL = ".partial-"


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
        return Unavailable("no C++ compiler is on the path (tried $CXX, c++, g++, clang++)")
    # Apple's and older ARM compilers know -mcpu=native only.
    target = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = [*compiler, target, *_OPTIONS, *(f"-D{name}" for name in defines)]
    try:
        key = _key(command)
        folder, note = _cache_folder()
        target_path = folder / f"decoder-{key}.so"
        if target_path.exists():
            found = _open(target_path, note)
            if isinstance(found, Library):
                return found
            target_path.unlink()  # damaged, for example by a full disk: once more
        _compile(command, target_path)
        found = _open(target_path, note)
        if note:
            shutil.rmtree(folder)  # what is loaded stays loaded
        return found
    except _Failed as failed:
        return Unavailable(str(failed))
    except OSError as error:  # among them a compiler that is not there
        return Unavailable(f"the native decoder could not be compiled: {error}")


def find_compiler() -> list[str] | None:
    """The command of the C++ compiler: `$CXX` when that is set, else the first one on the path, else None."""
    named = os.environ.get("CXX")
    if named:
        words = shlex.split(named)
        return words or None
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return [found] if found else None


class _Failed(Exception):
    """Carries a reason up to `load`."""


def _key(command: list[str]) -> str:
    """Everything the result depends on: sources, options, compiler and the CPU as the compiler sees it."""
    macros = _run([*command, "-x", "c++", "-dM", "-E", "-"], "the C++ compiler does not work").stdout
    digest = sha256("\0".join(command).encode())
    digest.update(macros)
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: list[str], failure: str) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise _Failed(f"{failure}: {command[0]} took more than {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        telling = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
        raise _Failed(f"{failure}: {command[0]} ended with {done.returncode}: {telling}")
    return done


def _cache_folder() -> tuple[Path, str]:
    """Where libraries are kept, and a note when that is only for this process."""
    folder = cache_home() / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # A folder of our own: a shared one in /tmp could hold another user's library.
        note = f"{folder} cannot be written ({error.strerror}): the decoder is compiled in every process"
        return Path(tempfile.mkdtemp(prefix="muomni-native-")), note
    for path in folder.glob(f"{_PARTIAL}*"):  # of killed compilations
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
    return folder, ""


def _compile(command: list[str], target: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        source = str(_SOURCES / "decoder.cpp")
        _run([*command, source, "-o", str(partial)], "the native decoder could not be compiled")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, note: str) -> Library | Unavailable:
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        return Unavailable(f"the compiled decoder does not load: {error}")
    functions.muomni_instructions.restype = ctypes.c_char_p
    return Library(functions, path, functions.muomni_instructions().decode(), note)
