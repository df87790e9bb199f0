"""The media index: conversations with pictures and sounds, and plain text, as token ids on disk.

It is to `MediaRows` what the token cache is to `PackedRows`, and lies beside it, named and published the same
way. Each medium has one placeholder among a document's tokens and a record that says how many tokens its
encoder gives; that is known from its header, so nothing is decoded here. Media that come inside a manifest, as
bytes of a Parquet column or in a data: URL, are copied into the index, where any of them is one read away.

    FINGERPRINT/
        meta.json           counts and ids; see IndexMeta
        train/, val/        one part each; val only where a share is held out
            tokens.bin      (tokens,) uint16 or uint32, a placeholder for each medium
            mask.bin        (tokens,) uint8, 1 where a token is learnt
            documents.bin   (documents,) DOCUMENT
            media.bin       (media,) MEDIUM
            refs.bin        JSON of each medium: where it is, its caption or transcript
            blobs.bin       the media that came inside a manifest
            bad.jsonl       documents left out because a header could not be read: name and reason
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import OmniConfig, SourceSpec
from muomni.data.cache import Mapped, default_cache_dir, partial_folder, publish, source_fingerprint
from muomni.data.cache_writer import Part
from muomni.data.media import MediaRef
from muomni.data.tokenizer import Tokenizer
from muomni.errors import DataError

# Goes up when the same input would give other bytes.
FORMAT = 1
IMAGE, AUDIO = 0, 1

# start, count: a document's tokens. medium, media: its media. length: tokens with all placeholders repeated.
# source: number of the recipe's source.
DOCUMENT = np.dtype(
    [("start", "<i8"), ("count", "<i8"), ("medium", "<i8"), ("media", "<i8"), ("length", "<i8"), ("source", "<i8")]
)
# place: of the placeholder among the document's tokens. frame: number in its video. rows, columns: the token
# grid of a picture. frames: of a sound, 100 a second. tokens: that the encoder gives. ref, size: in refs.bin.
MEDIUM = np.dtype(
    [
        ("kind", "<i4"),
        ("frame", "<i4"),
        ("rows", "<i4"),
        ("columns", "<i4"),
        ("frames", "<i4"),
        ("tokens", "<i4"),
        ("place", "<i8"),
        ("ref", "<i8"),
        ("size", "<i8"),
    ]
)


@dataclass(frozen=True)
class IndexMeta:
    """Counts of one part.

    Attributes:
        documents, media: how many.
        tokens: with one placeholder for each medium.
        length: tokens with all placeholders repeated.
        target_tokens, target_bytes: tokens that are learnt, and UTF-8 bytes of their text.
        refs, blobs: bytes of those files.
        bad: documents left out because of media whose header could not be read.
    """

    documents: int
    media: int
    tokens: int
    length: int
    target_tokens: int
    target_bytes: int
    refs: int
    blobs: int
    bad: int


@dataclass(frozen=True)
class Reference:
    """Where a medium comes from and what goes with it.

    Attributes:
        source: what `load_image` and `load_audio` take.
        name: for messages to the user.
        origin: file and line, or row, of its document.
        note: caption or transcript.
        note_ids: token ids of the caption.
    """

    source: MediaRef | bytes
    name: str
    origin: str
    note: str | None
    note_ids: tuple[int, ...]


class MediaIndex:
    """One part of a media index, opened for reading; any thread may read. Copies in other processes share the memory.

    Attributes:
        folder: where the part's files lie.
        meta: its counts.
        fingerprint: of everything that went into the index, and the part's name.
        eos_id, pad_id: from the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a part's folder.

        Raises:
            DataError: it is not a whole index.
        """
        everything = read_meta(folder.parent)
        if everything is None or folder.name not in everything["parts"]:
            raise DataError(f"{folder}: is not a whole media index")
        self.folder = folder
        self.meta = IndexMeta(**everything["parts"][folder.name])
        self.fingerprint = f"{everything['fingerprint']}-{folder.name}"
        self.eos_id: int = everything["eos_id"]
        self.pad_id: int = everything["pad_id"]
        self._dtype = np.dtype(everything["dtype"])

    def __reduce__(self) -> tuple[type["MediaIndex"], tuple[Path]]:
        return MediaIndex, (self.folder,)

    @property
    def num_documents(self) -> int:
        """Documents of the part."""
        return self.meta.documents

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per learnt token."""
        return self.meta.target_bytes / max(1, self.meta.target_tokens)

    @cached_property
    def documents(self) -> NDArray[Any]:
        """(documents,) DOCUMENT."""
        return self._array("documents.bin", DOCUMENT)

    @cached_property
    def media(self) -> NDArray[Any]:
        """(media,) MEDIUM."""
        return self._array("media.bin", MEDIUM)

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """(tokens,) uint16 or uint32."""
        return self._array("tokens.bin", self._dtype)

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """(tokens,) uint8, 1 where a token is learnt."""
        return self._array("mask.bin", np.dtype(np.uint8))

    def reference(self, medium: int) -> Reference:
        """Where a medium comes from, by its number in `media`."""
        record = self.media[medium]
        found = json.loads(_read(self._refs, int(record["size"]), int(record["ref"])))
        source: MediaRef | bytes
        if "blob" in found:
            source = _read(self._blobs, found["blob"][1], found["blob"][0])
        else:
            source = MediaRef("image" if record["kind"] == IMAGE else "audio", found["path"], found.get("member"))
        return Reference(source, found["name"], found["origin"], found.get("note"), tuple(found.get("ids", ())))

    def bad(self, limit: int) -> list[str]:
        """Names and reasons of the first documents that were left out."""
        with (self.folder / "bad.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line)["reason"] for _, line in zip(range(limit), file, strict=False)]

    def release(self) -> None:
        """Lets go of the mapped pages read so far, which would otherwise count as this process's memory."""
        for mapped in self._maps:
            mapped.release()

    def _array(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / name
        if not path.stat().st_size:
            return np.empty(0, dtype)
        mapped = Mapped(path, dtype)
        self._maps.append(mapped)
        return mapped.array

    @cached_property
    def _maps(self) -> list[Mapped]:
        return []

    @cached_property
    def _refs(self) -> int:
        return os.open(self.folder / "refs.bin", os.O_RDONLY)

    @cached_property
    def _blobs(self) -> int:
        return os.open(self.folder / "blobs.bin", os.O_RDONLY)


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Bytes at a place of a file; may be called from any thread at once."""
    parts = []
    while size:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise DataError("the media index ends too early; delete it so that it is built anew")
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def build_media_index(
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    config: OmniConfig,
    cache_dir: Path | None = None,
    *,
    part: Part = "train",
    val_fraction: float = 0.0,
    workers: int = 2,
    progress: bool = True,
) -> MediaIndex:
    """The media index of `sources`, built when there is none that fits. Memory does not grow with the sources.

    A document goes to a part by a hash of its text and of the names of its media, as in the token cache.

    Args:
        config: the model; its encoders decide how many tokens a medium takes.
        cache_dir: None takes `default_cache_dir()`.
        part: which part to open.
        val_fraction: share of the documents held out; 0 puts all into `train`.
        workers: threads that read headers.
        progress: show a bar when standard error is a terminal.

    Raises:
        DataError: a source cannot be read, holds nothing to learn from or media that the model has no encoder
            for, there is too little to divide, or the index cannot be written.
    """
    from muomni.data.media_index_writer import Probe, write_index

    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    fingerprint = _fingerprint(sources, tokenizer, config, val_fraction)
    target = root / fingerprint
    found = read_meta(target)
    if found is None or not _unchanged(found["archives"]):
        with partial_folder(root) as partial:
            meta = write_index(partial, sources, tokenizer, Probe(config), val_fraction, max(1, workers), progress)
            if _fingerprint(sources, tokenizer, config, val_fraction) != fingerprint:
                raise DataError("the training data changed while it was read; start again when it is complete")
            whole = {"format": FORMAT, "fingerprint": fingerprint, **meta}
            (partial / "meta.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
            if found is not None:  # an archive that it names has changed: move it out of the way
                target.rename(partial / "outdated")
            publish(partial, target, root, lambda folder: read_meta(folder) is not None)
    return MediaIndex(target / part)


def _fingerprint(sources: Sequence[SourceSpec], tokenizer: Tokenizer, config: OmniConfig, val_fraction: float) -> str:
    towers = [None if tower is None else tower.model_dump(mode="json") for tower in (config.vision, config.audio)]
    described = ["media", FORMAT, source_fingerprint(sources, tokenizer, val_fraction), towers]
    return sha256(json.dumps(described).encode()).hexdigest()[:32]


def describe_archive(path: str) -> list[int]:
    """Size and time of change of an archive; [] where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns]


def _unchanged(archives: Mapping[str, list[int]]) -> bool:
    return all(describe_archive(path) == state for path, state in archives.items())


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The meta data of a whole index; None when there is none or any of its files has another size."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or meta["fingerprint"] != folder.name:
            return None
        width = np.dtype(meta["dtype"]).itemsize
        for name, values in meta["parts"].items():
            counts = IndexMeta(**values)
            sizes = {
                "tokens.bin": counts.tokens * width,
                "mask.bin": counts.tokens,
                "documents.bin": counts.documents * DOCUMENT.itemsize,
                "media.bin": counts.media * MEDIUM.itemsize,
                "refs.bin": counts.refs,
                "blobs.bin": counts.blobs,
            }
            if any((folder / name / file).stat().st_size != size for file, size in sizes.items()):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta
