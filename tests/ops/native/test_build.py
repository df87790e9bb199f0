"""Compiling the native decoder: kept between processes, never half a library, a reason where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muomni.ops.cpp_build import PARTIAL, find_compiler
from muomni.ops.native import Library, Unavailable, load


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that knows little: it notes each compilation and links a library with one function."""
    real = find_compiler()
    if real is None:
        pytest.skip("there is no C++ compiler")
    small = tmp_path / "small.cpp"
    small.write_text('extern "C" const char* muomni_instructions() { return "small"; }')
    script = tmp_path / "compiler"
    script.write_text(
        f"""#!/bin/sh
case "$*" in *" -E "*) echo "$COMPILER_VERSION"; exit 0;; esac
echo compiled >> {tmp_path}/log
for last; do :; done
exec {" ".join(real)} -shared -fPIC {small} -o "$last"
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return tmp_path / "log"


def compilations(log: Path) -> int:
    return len(log.read_text().splitlines())


def load_elsewhere(processes: int = 1) -> None:
    code = "from muomni.ops.native import build; print(type(build.load()).__name__)"
    run = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    assert [process.communicate(timeout=60)[0].strip() for process in run] == ["Library"] * processes


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = load()
    assert isinstance(found, Unavailable) and "no C++ compiler" in found.reason


def test_named_compiler_is_missing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Another one on the path does not stand in for the one that was named."""
    monkeypatch.setenv("CXX", "/nowhere/c++ -O1")
    found = load()
    assert isinstance(found, Unavailable) and "/nowhere/c++" in found.reason


def test_compiled_once(compiler: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = load(), load()
    assert isinstance(first, Library) and isinstance(second, Library)
    assert first.instructions == "small" and first.path == second.path and first.path.parent == cache
    assert compilations(compiler) == 1
    monkeypatch.setenv("COMPILER_VERSION", "another compiler or CPU")
    assert load() != first and compilations(compiler) == 2
    assert load(("MUOMNI_PLAIN",)) != first and compilations(compiler) == 3


def test_damaged_library_is_made_again(compiler: Path, cache: Path) -> None:
    load_elsewhere()  # a process that loaded a library does not read its file again
    (path,) = cache.iterdir()
    path.write_bytes(b"half a libr")
    again = load()
    assert isinstance(again, Library) and again.path == path and compilations(compiler) == 2


def test_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    script = tmp_path / "c++"
    script.write_text('#!/bin/sh\ncase "$*" in *" -E "*) exit 0;; esac\necho "x.cpp: error: too old" >&2; exit 3\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    found = load()
    assert isinstance(found, Unavailable) and "error: too old" in found.reason and "ended with 3" in found.reason
    assert list(cache.iterdir()) == []


def test_what_killed_compilers_left(compiler: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, fresh = (cache / f"{PARTIAL}{name}" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert isinstance(load(), Library)
    assert not old.exists() and fresh.exists()


def test_folder_that_cannot_be_written(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "file"))
    found = load()
    assert isinstance(found, Library) and "cannot be written" in found.note
    assert not found.path.exists()  # loaded, and nothing left behind


def test_two_processes_at_once(compiler: Path, cache: Path) -> None:
    load_elsewhere(processes=2)
    assert [path.suffix for path in cache.iterdir()] == [".so"]
