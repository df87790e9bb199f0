"""The token cache: the documents of some sources as token ids on disk, read through memory maps.

A cache folder is named by a fingerprint of all that went into it, so a change of a file, an option or
the tokenizer leads to another folder. It is built under a temporary name and renamed when it is whole:
a build that is killed leaves nothing that could be taken for a cache, and of two builds at once the
second to finish uses what the first one made.

    FINGERPRINT/
        meta.json           counts, ids of the end and pad tokens; see CacheMeta
        train/, val/        one part each; val only where a share is held out
            tokens.bin      (tokens,) uint16, or uint32 for a vocabulary above 65,536
            offsets.bin     (documents,) int64, where each document begins
            mask.bin        (tokens,) uint8, 1 where a token is learnt; only where not all are
"""

import json
import mmap
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import SourceSpec
from muomni.data.index.token_cache_writer import Part, PartMeta, Split, token_dtype, write_parts
from muomni.data.sources.sources import source_files
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError
from muomni.files import cache_home, flush

# Goes up when the same input would give other bytes, so that older caches are left alone.
FORMAT = 1

_PARTIAL = ".partial-"
_WHOLE_HASH_BYTES = 8 << 20
_ENDS_HASH_BYTES = 1 << 20
_STALE_SECONDS = 24 * 3600


class TokenCache:
    """One part of a token cache, opened for reading. Copies of it in other processes share the memory.

    Attributes:
        folder: where the part's files lie.
        meta: its counts.
        fingerprint: of everything that went into the cache, and the part's name.
        eos_id, pad_id: from the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a part's folder.

        Raises:
            DataError: it is not a whole cache.
        """
        everything = _read_meta(folder.parent)
        if everything is None or folder.name not in everything["parts"]:
            raise DataError(f"{folder}: is not a whole token cache")
        self.folder = folder
        self.meta = PartMeta(**everything["parts"][folder.name])
        self.fingerprint = f"{everything['fingerprint']}-{folder.name}"
        self.eos_id: int = everything["eos_id"]
        self.pad_id: int = everything["pad_id"]
        self._dtype = np.dtype(everything["dtype"])

    def __reduce__(self) -> tuple[type["TokenCache"], tuple[Path]]:
        return TokenCache, (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Tokens of the part, ends of documents included."""
        return self.meta.tokens

    @property
    def num_documents(self) -> int:
        """Documents of the part."""
        return self.meta.documents

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per learnt token: divides a loss per token into one per byte."""
        return self.meta.target_bytes / self.meta.target_tokens

    @cached_property
    def tokens(self) -> "Mapped":
        """(num_tokens,) uint16 or uint32."""
        return Mapped(self.folder / "tokens.bin", self._dtype)

    @cached_property
    def offsets(self) -> "Mapped":
        """(num_documents,) int64: index of the first token of each document."""
        return Mapped(self.folder / "offsets.bin", np.dtype(np.int64))

    @cached_property
    def mask(self) -> "Mapped | None":
        """(num_tokens,) uint8, 1 where a token is learnt; None where all are."""
        return Mapped(self.folder / "mask.bin", np.dtype(np.uint8)) if self.meta.masked else None

    def starts_between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sorted indices of the tokens in [start, stop) that begin a document."""
        first, last = np.searchsorted(self.offsets.array, [start, stop])
        return np.array(self.offsets.array[first:last])


class Mapped:
    """A file as a read-only array in mapped memory."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array: NDArray[Any] = np.frombuffer(self._map, dtype)

    def release(self) -> None:
        """Lets go of the pages read so far, which would otherwise count as this process's memory."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def default_cache_dir() -> Path:
    """See `muomni.files.cache_home`."""
    return cache_home() / "tokens"


def build_token_cache(
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    cache_dir: Path | None = None,
    *,
    part: Part = "train",
    val_fraction: float = 0.0,
    progress: bool = True,
) -> TokenCache:
    """The token cache of `sources`, built when there is none that fits.

    Memory does not grow with the sources. With `val_fraction`, both parts come from one pass; a
    document goes by a hash of its text, so equal documents share a part. Of plain text without
    separators, pieces of about 4,000 characters are shared out instead of whole files. Where so
    little data is there that a part would stay empty, the document with the smallest hash is held out.

    A data set from the Hugging Face Hub is taken as unchanged as long as its name, subset and split
    are; delete the cache to read it anew.

    Args:
        cache_dir: None takes `default_cache_dir()`.
        part: which part to open.
        val_fraction: share of the documents held out; 0 puts all into `train`.
        progress: show a bar when standard error is a terminal.

    Raises:
        DataError: a source cannot be read or holds nothing to learn from, there is too little to
            divide, or the cache cannot be written.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    fingerprint = source_fingerprint(sources, tokenizer, val_fraction)
    target = root / fingerprint
    if _read_meta(target) is None:
        with partial_folder(root) as partial:
            _build(partial, sources, tokenizer, fingerprint, val_fraction, progress)
            if source_fingerprint(sources, tokenizer, val_fraction) != fingerprint:
                raise DataError("the training data changed while it was read; start again when it is complete")
            publish(partial, target, root, _is_whole)
    return TokenCache(target / part)


def source_fingerprint(sources: Sequence[SourceSpec], tokenizer: Tokenizer, val_fraction: float) -> str:
    """A hash of all that decides a cache's bytes: files, options, tokenizer, and the form of the cache."""
    described: list[Any] = [FORMAT, tokenizer.fingerprint, val_fraction]
    for spec in sources:
        files = [file.path for file in source_files(spec) or ()]
        folder = Path(spec.path).expanduser()
        if not files and folder.is_dir():  # a folder of the `datasets` library
            files = sorted(path for path in folder.rglob("*") if path.is_file())
        described.append([spec.model_dump(mode="json", exclude={"weight"}), [_describe_file(path) for path in files]])
    return sha256(json.dumps(described).encode()).hexdigest()[:32]


def _describe_file(path: Path) -> list[Any]:
    """Path, size, time of change, and a hash of the content: all of it, or both ends of a large file."""
    content = blake2b(digest_size=16)
    try:
        found = path.stat()
        with path.open("rb") as file:
            if found.st_size <= _WHOLE_HASH_BYTES:
                content.update(file.read())
            else:
                content.update(file.read(_ENDS_HASH_BYTES))
                file.seek(-_ENDS_HASH_BYTES, os.SEEK_END)
                content.update(file.read())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return [str(path.resolve()), found.st_size, found.st_mtime_ns, content.hexdigest()]


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """The meta data of a whole cache; None when there is none or any of its files has another size."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or meta["fingerprint"] != folder.name:
            return None
        width = np.dtype(meta["dtype"]).itemsize
        for name, values in meta["parts"].items():
            part = PartMeta(**values)
            sizes = {"tokens.bin": part.tokens * width, "offsets.bin": part.documents * 8}
            if part.masked:
                sizes["mask.bin"] = part.tokens
            if any((folder / name / file).stat().st_size != size for file, size in sizes.items()):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta


def _build(
    folder: Path,
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    fingerprint: str,
    val_fraction: float,
    progress: bool,
) -> None:
    parts: tuple[Part, ...] = ("train", "val") if val_fraction else ("train",)
    split = Split(val_fraction)
    counts = write_parts(folder, sources, tokenizer, parts, split, progress)
    if val_fraction and not all(part.target_tokens for part in counts.values()) and split.least < split.second:
        # So few documents that chance left a part empty.
        split = Split(0.0, held_out=split.least)
        counts = write_parts(folder, sources, tokenizer, parts, split, progress)
    names = ", ".join(spec.path for spec in sources)
    if not any(part.target_tokens for part in counts.values()):
        raise DataError(f"{names}: holds no text to learn from")
    if not all(part.target_tokens for part in counts.values()):
        raise DataError(f"{names}: is too little text to hold some out for validation; name other files in data.val")
    meta = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "dtype": token_dtype(tokenizer).name,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "parts": {name: asdict(part) for name, part in counts.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextmanager
def partial_folder(root: Path) -> Iterator[Path]:
    """A temporary folder in `root`, gone afterwards; what killed builds left there is removed first."""
    host = socket.gethostname()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root, host)
        partial = root / f"{_PARTIAL}{host}-{os.getpid()}-{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise DataError(
            f"{root}: the token cache cannot be written there: {error.strerror}; name another folder in "
            "data.cache_dir or the environment variable MUOMNI_CACHE"
        ) from None
    try:
        yield partial
    except OSError as error:
        raise DataError(f"{root}: the token cache could not be written: {error.strerror or error}") from None
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


def _is_whole(folder: Path) -> bool:
    return _read_meta(folder) is not None


def publish(partial: Path, target: Path, root: Path, is_whole: Callable[[Path], bool]) -> None:
    """Gives a finished build its name, unless another process was quicker.

    Args:
        is_whole: whether a folder holds a finished build.
    """
    for path in partial.rglob("*"):
        flush(path)
    flush(partial)
    for _ in range(2):
        try:
            partial.rename(target)
        except OSError:
            if is_whole(target):
                return
            # What has the name is damaged. Renaming first means nobody sees it half removed.
            if target.exists():
                damaged = partial.with_name(f"{partial.name}-damaged")
                target.rename(damaged)
                shutil.rmtree(damaged)
        else:
            flush(root)
            return
    raise DataError(f"{target}: the finished token cache could not be given its name")
