"""The folder of a run: who writes it, which checkpoint is the last, and what must be the same to go on.

`last` and `best` are symbolic links where the file system has them, else small files with the name of a checkpoint;
copied without links (`scp -r`, object stores) they are folders, which are taken for what they are.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from muomni.config import AnySource, DataSpec, Recipe, SyntheticSpec
from muomni.data.cache_folder import describe_file
from muomni.data.synthetic.world import rules_digest
from muomni.errors import ConfigError, UserError
from muomni.files import user_path, write_atomic

_LOCK, _WRITER = ".lock", ".writer"
# What may differ between a run and its resumption: nothing that changes what is computed. With `on_oom`
# that is so until memory runs out, where the other choice is the end of the run.
# Another number of processes, or another way to share the work, changes rounding and what dropout draws.
_MAY_CHANGE = ("schema_", "name", "log_every", "checkpoint", "eval", "on_oom", "allocator", "parallel", "tune")
# Where something lies; what it holds is compared by itself, or lies in the checkpoint.
_PLACES = ("path", "cache_dir", "init_from", "num_workers", "max_unreadable_fraction", "talker.codec")
# Of a folder, files that are read for its identity; of others name and size count.
_FILES_READ = 64


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """The one process that writes into a run folder, which is made here and goes again if nothing comes into it.

    Children that outlive a killed writer hold the lock, too.

    Raises:
        UserError: another process writes there, or the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"{run}: {_writer(run)} trains there; wait for its end, or give another --out") from None
    except OSError as error:
        raise UserError(f"{run}: cannot be written: {error.strerror or error}; --out names another folder") from None
    try:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_atomic(run / _WRITER, json.dumps(mine))
        yield
    finally:
        (run / _WRITER).unlink(missing_ok=True)
        if [path.name for path in run.iterdir()] == [_LOCK]:
            (run / _LOCK).unlink()
            lock.release()
            run.rmdir()
        lock.release()


def _writer(run: Path) -> str:
    try:
        writer = json.loads((run / _WRITER).read_text(encoding="utf-8"))
        return f"process {writer['pid']} on {writer['host']}, since {writer['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def content_of(sources: Sequence[AnySource]) -> str:
    """A hash of what sources hold and of their options, wherever they lie.

    Raises:
        DataError: a file cannot be read.
    """
    described: list[Any] = []
    for source in sources:
        if isinstance(source, SyntheticSpec):
            described.append([source.model_dump(mode="json"), rules_digest()])
            continue
        path = user_path(source.path)
        options = source.model_dump(mode="json", exclude={"path"})
        if path.is_file():
            described.append([options, _content(path)])
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            described.append([options, [str(file.relative_to(path)) for file in files]])
            described += [_content(file) for file in files[:_FILES_READ]]
            described += [file.stat().st_size for file in files[_FILES_READ:]]
        else:  # a data set by its name
            described.append([options, source.path])
    return blake2b(json.dumps(described).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _content(file: Path) -> list[Any]:
    _, size, _, content = describe_file(file)
    return [size, content]


def data_of(data: DataSpec) -> str:
    """A hash of what the training data hold."""
    return content_of([*data.train, *(data.speech.train if data.speech is not None else ())])


def changes(recipe: Recipe, earlier: Recipe) -> list[str]:
    """What of a recipe is not as it was and would not continue the run, as `data.seq_len: 64 became 128`."""
    now, before = _flat(recipe.model_dump(mode="json")), _flat(earlier.model_dump(mode="json"))
    keys = dict.fromkeys((*before, *now))
    return [f"{key}: {before.get(key)!r} became {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Plain values by their keys, without what may change."""
    if key.startswith(_MAY_CHANGE) or key.endswith(_PLACES):
        return {}
    if isinstance(value, Mapping):
        parts = ((f"{key}.{name}" if key else name, inner) for name, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        parts = ((f"{key}.{number}", inner) for number, inner in enumerate(value))
    else:
        return {key: value}
    return {name: plain for part, inner in parts for name, plain in _flat(inner, part).items()}


def refuse_changes(found: Sequence[str], start: Path, allowed: bool) -> None:
    """Refuses to go on where something is not as it was.

    Args:
        found: see `changes`.
        start: the checkpoint.
        allowed: somebody means it.

    Raises:
        ConfigError: naming the first few.
    """
    if found and not allowed:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ConfigError(
            f"{start} is of another recipe or other data, so going on would not continue it: "
            f"{'; '.join(found[:5])}{more}. --allow-changed goes on all the same; model.init_from begins a run with "
            "its weights"
        )
