"""The token index: documents as token ids on disk, with the pictures and sounds that belong to them.

Each medium has one placeholder among a document's tokens and a record that says how many tokens its encoder gives;
that is known from its header, so nothing is decoded when an index is built. Media that come inside a manifest, as
bytes of a Parquet column or in a data: URL, are copied into the index, where any of them is one read away. Arrays are
mapped into memory. An index lies in a folder of `cache_folder`:

    FINGERPRINT/
        meta.json           ids of the end and pad tokens, and counts of each part; see Counts
        train/, val/        one part each; val only where a share is held out. Files without content are not there.
            tokens.bin      (tokens,) uint16, or uint32 for a vocabulary above 65,536; a placeholder for each medium
            mask.bin        (tokens,) uint8, 1 where a token is learnt; only where not all are
            documents.bin   (documents,) DOCUMENT
            media.bin       (media,) MEDIUM
            refs.bin        JSON of each medium: where it is, its caption or transcript
            blobs.bin       the media that came inside a manifest
            bad.jsonl       documents left out because a header could not be read: name and reason
"""

import json
import mmap
import os
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.data.arrays import Ints
from muomni.data.cache_folder import read_meta
from muomni.data.media.media_ref import MediaRef
from muomni.errors import DataError

IMAGE, AUDIO = 0, 1

# start, count: a document's tokens. medium, media: its media. length: tokens with all placeholders repeated.
# source: number of the recipe's source.
DOCUMENT = np.dtype([(name, "<i8") for name in ("start", "count", "medium", "media", "length", "source")])

# place: of the placeholder among the document's tokens. frame: number in its video. rows, columns: the token
# grid of a picture. frames: of a sound, 100 a second. tokens: that the encoder gives. ref, size: in refs.bin.
MEDIUM = np.dtype(
    [
        *((name, "<i4") for name in ("kind", "frame", "rows", "columns", "frames", "tokens")),
        *((name, "<i8") for name in ("place", "ref", "size")),
    ]
)


@dataclass(frozen=True)
class Counts:
    """Counts of one part.

    Attributes:
        text_bytes: UTF-8 bytes of all text, special tokens not counted.
        target_tokens: tokens that are learnt: all of plain text, the answers of conversations.
        target_bytes: UTF-8 bytes of those tokens' text.
        bad: documents left out because of media whose header could not be read.
    """

    text_bytes: int
    target_tokens: int
    target_bytes: int
    bad: int = 0


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


class TokenIndex:
    """One part of a token index, opened for reading; any thread may read. Copies in other processes share the memory.

    Attributes:
        folder: where the part's files lie.
        counts: of the part.
        fingerprint: of everything that went into the index, and the part's name.
        eos_id, pad_id: from the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a part's folder.

        Raises:
            DataError: it is not a whole index.
        """
        meta = read_meta(folder.parent)
        if meta is None or folder.name not in meta.get("parts", ()):
            raise DataError(f"{folder}: is not a whole token index")
        self.folder = folder
        self.counts = Counts(**meta["parts"][folder.name])
        self.fingerprint = f"{meta['fingerprint']}-{folder.name}"
        self.eos_id: int = meta["eos_id"]
        self.pad_id: int = meta["pad_id"]
        self._dtype = np.dtype(meta["dtype"])
        self._maps: list[mmap.mmap] = []

    def __reduce__(self) -> tuple[type["TokenIndex"], tuple[Path]]:
        return TokenIndex, (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Tokens of the part: ends of documents included, one placeholder for each medium."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents of the part."""
        return len(self.documents)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per learnt token: divides a loss per token into one per byte."""
        return self.counts.target_bytes / max(1, self.counts.target_tokens)

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """(num_tokens,) uint16 or uint32."""
        return self._array("tokens.bin", self._dtype)

    @cached_property
    def mask(self) -> NDArray[np.uint8] | None:
        """(num_tokens,) uint8, 1 where a token is learnt; None where all are."""
        return self._array("mask.bin", np.dtype(np.uint8)) if (self.folder / "mask.bin").exists() else None

    @cached_property
    def documents(self) -> NDArray[Any]:
        """(num_documents,) DOCUMENT."""
        return self._array("documents.bin", DOCUMENT)

    @cached_property
    def media(self) -> NDArray[Any]:
        """(media,) MEDIUM."""
        return self._array("media.bin", MEDIUM)

    def learnt(self, begin: int, end: int) -> NDArray[np.bool_]:
        """(end − begin,) which of these tokens are learnt."""
        return np.ones(end - begin, bool) if self.mask is None else self.mask[begin:end] != 0

    def starts_between(self, begin: int, end: int) -> Ints:
        """Sorted indices of the tokens in [begin, end) that begin a document."""
        first, last = (bisect_left(self.documents, at, key=lambda document: document["start"]) for at in (begin, end))
        return self.documents[first:last]["start"].astype(np.int64)

    def reference(self, medium: int) -> Reference:
        """Where a medium comes from, by its number in `media`."""
        record = self.media[medium]
        content = json.loads(_read(self._refs, int(record["size"]), int(record["ref"])))
        source: MediaRef | bytes
        if "blob" in content:
            source = _read(self._blobs, content["blob"][1], content["blob"][0])
        else:
            source = MediaRef("image" if record["kind"] == IMAGE else "audio", content["path"], content.get("member"))
        return Reference(source, content["name"], content["origin"], content.get("note"), tuple(content.get("ids", ())))

    def bad(self, limit: int) -> list[str]:
        """Names and reasons of the first documents that were left out."""
        if not self.counts.bad:
            return []
        with (self.folder / "bad.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line)["reason"] for _, line in zip(range(limit), file, strict=False)]

    def release(self) -> None:
        """Lets go of the mapped pages read so far, which would otherwise count as this process's memory."""
        for mapped in self._maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _array(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / name
        if not path.exists():
            return np.empty(0, dtype)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype)

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
            raise DataError("the token index ends too early; delete it so that it is built anew")
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)
