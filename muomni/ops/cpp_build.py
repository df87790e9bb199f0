"""Compiles C++ of ours once per source, compiler and CPU, and keeps the library.

It lies in `native` of the user's cache (`muomni.files.cache_home`), named by a hash of the sources, the options and
everything the compiler predefines for this CPU (its version and each instruction set are among that). It is written
under another name and renamed, so neither two processes at once nor a kill can leave half a library.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from muomni.files import cache_home

PARTIAL = ".partial-"
NO_COMPILER = "no C++ compiler is on the path (tried $CXX, c++, g++, clang++)"
_TIMEOUT_SECONDS = 300
_STALE_SECONDS = 3600
LibraryT = TypeVar("LibraryT")


class CompilationError(Exception):
    """A library that cannot be had here, and why; whoever asked for it goes on without."""


def compiled(
    name: str,
    what: str,
    sources: Sequence[Path],
    command: Sequence[str],
    libraries: Sequence[str],
    opened: Callable[[Path, str], LibraryT],
) -> LibraryT:
    """Finds or compiles a library and opens it; the first time on a machine takes some seconds.

    Args:
        name: the file's, before the hash.
        what: the library in words, for messages.
        sources: the first is compiled; the others are included by it.
        command: the compiler with its options.
        libraries: options behind the source.
        opened: called with the path and a note for the user, which is empty where there is nothing to say.

    Raises:
        CompilationError: it does not compile or does not open.
    """
    try:
        key = _key([*command, *libraries], sources)
        folder, note = _cache_folder(what)
        target = folder / f"{name}-{key}.so"
        if target.exists():
            try:
                return opened(target, note)
            except CompilationError:
                target.unlink()  # damaged, for example by a full disk: once more
        _compile([*command, str(sources[0])], libraries, target, what)
        found = opened(target, note)
        if note:
            shutil.rmtree(folder)  # what is loaded stays loaded
        return found
    except OSError as error:  # among them a compiler that is not there
        raise CompilationError(f"{what} could not be compiled: {error}") from None


def find_compiler() -> list[str] | None:
    """The command of the C++ compiler: `$CXX` when that is set, else the first one on the path, else None."""
    named = os.environ.get("CXX")
    if named:
        words = shlex.split(named)
        return words or None
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return [found] if found else None


def _key(command: Sequence[str], sources: Sequence[Path]) -> str:
    """Everything the result depends on: sources, options, compiler and the CPU as the compiler sees it."""
    macros = _run([*command, "-x", "c++", "-dM", "-E", "-"], "the C++ compiler does not work").stdout
    digest = sha256("\0".join(command).encode())
    digest.update(macros)
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: Sequence[str], failure: str) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise CompilationError(f"{failure}: {command[0]} took more than {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().split("\n")
        telling = next((line for line in lines if "error" in line), lines[-1] or "it said nothing")
        raise CompilationError(f"{failure}: {command[0]} ended with {done.returncode}: {telling}")
    return done


def _cache_folder(what: str) -> tuple[Path, str]:
    """Where libraries are kept, and a note when that is only for this process."""
    folder = cache_home() / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # A folder of our own: a shared one in /tmp could hold another user's library.
        note = f"{folder} cannot be written ({error.strerror}): {what} is compiled in every process"
        return Path(tempfile.mkdtemp(prefix="muomni-native-")), note
    for path in folder.glob(f"{PARTIAL}*"):  # of killed compilations
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
    return folder, ""


def _compile(command: Sequence[str], libraries: Sequence[str], target: Path, what: str) -> None:
    handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        _run([*command, *libraries, "-o", str(partial)], f"{what} could not be compiled")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
