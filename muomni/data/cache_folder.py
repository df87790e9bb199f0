"""Cached data on disk: folders that are named by a fingerprint of their input, and whole or absent.

A change of a file, an option or the tokenizer leads to another fingerprint and so to another folder. A folder is
written under a temporary name and renamed when it is whole: a build that is killed leaves nothing that could be taken
for one, and of two builds at once the second to finish uses what the first one made. `meta.json` lists every file
with its size, so that a damaged folder is found and built anew.
"""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from muomni.errors import DataError
from muomni.files import cache_home, flush, write_json

# Goes up when the same input would give other bytes, so that older folders are left alone or built anew.
FORMAT = 3

_META = "meta.json"
_PARTIAL = ".partial-"
_WHOLE_HASH_BYTES = 8 << 20
_ENDS_HASH_BYTES = 1 << 20
_STALE_SECONDS = 24 * 3600


def default_cache_dir() -> Path:
    """Where token indexes lie; see `muomni.files.cache_home`."""
    return cache_home() / "tokens"


def open_or_build(
    root: Path,
    name: str,
    write: Callable[[Path], Mapping[str, Any]],
    *,
    is_current: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> dict[str, Any]:
    """The meta data of the folder `name` in `root`, which is built when it is missing, damaged or outdated.

    Args:
        root: made where it is missing.
        name: a fingerprint of everything that decides the content.
        write: fills an empty folder and returns what belongs into `meta.json`.
        is_current: whether a whole folder with this meta data may still be used.

    Raises:
        DataError: the folder cannot be written; and whatever `write` raises.
    """
    target = root / name

    def usable() -> dict[str, Any] | None:
        meta = read_meta(target)
        return meta if meta is not None and is_current(meta) else None

    if (current := usable()) is not None:
        return current
    with _partial_folder(root) as partial:
        meta = {"format": FORMAT, "fingerprint": name, **write(partial)}
        files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in _files(partial)}
        write_json(partial / _META, {**meta, "files": files})
        _publish(partial, target, usable)
    if (current := usable()) is None:
        raise DataError(f"{target}: changed while it was opened; start again")
    return current


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The meta data of a whole folder; None when there is none, or a file is missing or has another size."""
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
        whole = meta["format"] == FORMAT and meta["fingerprint"] == folder.name
        whole = whole and all((folder / file).stat().st_size == size for file, size in meta["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole else None


def fingerprint(*described: Any) -> str:
    """A name for what is built from this: values that JSON can hold."""
    return sha256(json.dumps([FORMAT, *described]).encode()).hexdigest()[:32]


def describe_file(path: Path) -> list[Any]:
    """Path, size, time of change, and a hash of the content: all of it, or both ends of a large file.

    Raises:
        DataError: it cannot be read.
    """
    content = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            if path.stat().st_size <= _WHOLE_HASH_BYTES:
                content.update(file.read())
            else:
                content.update(file.read(_ENDS_HASH_BYTES))
                file.seek(-_ENDS_HASH_BYTES, os.SEEK_END)
                content.update(file.read())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return [str(path.resolve()), *file_stamp(path), content.hexdigest()]


def file_stamp(path: str | Path) -> list[int]:
    """Size and time of change of a file; [] where there is none, which is told when it is read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _partial_folder(root: Path) -> Iterator[Path]:
    """A temporary folder in `root`, gone afterwards; what killed builds left there is removed first."""
    host = socket.gethostname()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root, host)
        partial = root / f"{_PARTIAL}{host}-{os.getpid()}-{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise DataError(
            f"{root}: cannot be written there: {error.strerror}; name another folder in data.cache_dir or the "
            "environment variable MUOMNI_CACHE"
        ) from None
    try:
        yield partial
    except OSError as error:
        raise DataError(f"{root}: could not be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(root: Path, host: str) -> None:
    """Removes temporary folders whose process is gone, or that nobody has written to for a day."""
    import psutil

    for path in root.glob(f"{_PARTIAL}*"):
        owner, _, pid = path.name.removeprefix(_PARTIAL).rpartition("-")[0].rpartition("-")
        gone = owner == host and pid.isdecimal() and not psutil.pid_exists(int(pid))
        try:
            touched = max(inner.stat().st_mtime for inner in (path, *path.rglob("*")))
        except OSError:  # its builder is just finishing
            continue
        if gone or time.time() - touched > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _publish(partial: Path, target: Path, usable: Callable[[], object | None]) -> None:
    """Gives a finished build its name, unless another process was quicker."""
    for path in partial.rglob("*"):
        flush(path)
    flush(partial)
    for _ in range(2):
        try:
            partial.rename(target)
        except OSError:
            if usable() is not None:
                return
            # What has the name is damaged or outdated. Renaming first means nobody sees it half removed.
            if target.exists():
                damaged = partial.with_name(f"{partial.name}-damaged")
                target.rename(damaged)
                shutil.rmtree(damaged)
        else:
            flush(target.parent)
            return
    raise DataError(f"{target}: the finished folder could not be given its name")
