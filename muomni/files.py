"""Writing files so that a kill, a full disk or a power cut never leaves half of one under its name."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from muomni.errors import UserError

_PARTIAL = ".partial-"


def cache_home() -> Path:
    """Where what can be made again is kept: `$MUOMNI_CACHE`, `$XDG_CACHE_HOME/muomni` or `~/.cache/muomni`."""
    named, xdg = os.environ.get("MUOMNI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return user_path(named) if named else user_path(xdg or "~/.cache") / "muomni"


def user_path(name: str | Path) -> Path:
    """A path that the user wrote, with `~` as the home folder; a name that only begins with `~` stays as it is.

    Names that come from data are never expanded.

    Raises:
        UserError: it is longer than the system allows.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises where there is no such home)
    try:
        path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{str(path)[:80]}…: the name is too long for a file") from None
    return path


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder; False, too, for a name that no file can have."""
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises for names that are too long)


def path_of_url(url: str) -> str:
    """The path that a `file:` URL names."""
    return unquote(re.sub("^file:(//[^/]*)?", "", url, flags=re.IGNORECASE))


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Gives errors of writing, which name no file where the disk is full, the name of one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(target)
        raise


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well.

    Everything in it is flushed to disk before the rename. When the block raises, the folder is
    removed and `target` stays as it was. An existing `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PARTIAL}{os.getpid()}-{target.name}")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        with _naming(target):
            yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                flush(path)
        flush(partial)
        if target.exists():
            old = target.with_name(f"{_PARTIAL}{os.getpid()}-old-{target.name}")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A name beside `target` for a new file, which takes its place when the block ends well.

    It is flushed to disk before the rename. When the block raises, it is removed and `target` stays as it was.
    """
    partial = target.with_name(f"{_PARTIAL}{os.getpid()}-{target.name}")
    try:
        with _naming(target):
            yield partial
            flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    flush(target.parent)


def write_atomic(target: Path, text: str) -> None:
    """Writes a small text file whole or not at all."""
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def link_atomic(link: Path, target: str) -> None:
    """Makes `link` stand for `target`, a name beside it: a symbolic link, or where there are none a file with the name.

    A folder in its place, as copies without links have it, is a copy of another folder beside it and goes.
    """
    partial = link.with_name(f"{_PARTIAL}{os.getpid()}-{link.name}")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target)
    except (OSError, NotImplementedError):
        partial.write_text(target + "\n", encoding="utf-8")
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    partial.replace(link)


def remove_folder(folder: Path) -> None:
    """Removes a folder; a kill in between leaves a partial one, never half of it under its name."""
    partial = folder.with_name(f"{_PARTIAL}{os.getpid()}-old-{folder.name}")
    folder.rename(partial)
    shutil.rmtree(partial)


def follow(link: Path) -> Path:
    """What `link_atomic` made `link` stand for; any other path is itself."""
    if link.is_file() and link.stat().st_size < 256:
        target = link.parent / link.read_text(encoding="utf-8", errors="replace").strip()
        if target.is_dir():
            return target
    return link


def remove_partial(folder: Path) -> None:
    """Removes what killed writers left in `folder`."""
    for path in folder.glob(f"{_PARTIAL}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(target: Path, value: Any) -> None:
    """Writes a value as indented JSON; not atomic, for use inside `atomic_folder`."""
    target.write_bytes(json_line(value, indent=2))


def json_line(value: Any, indent: int | None = None) -> bytes:
    """A value as a line of JSON in UTF-8; names of files that are not UTF-8 are escaped, and read back as they were."""
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def text_lines(text: str) -> list[str]:
    """The lines of a text: only a line feed ends one, and what follows the last is one if it is not empty.

    `str.splitlines` also cuts at U+2028, U+0085 and others, which stand in texts, and unescaped in JSON.
    """
    *lines, rest = text.split("\n")
    return [*lines, rest] if rest else lines


def flush(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
