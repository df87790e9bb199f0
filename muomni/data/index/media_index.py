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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.data.index.media_format import DOCUMENT, IMAGE, MEDIUM, IndexMeta, read_meta
from muomni.data.index.token_cache import Mapped
from muomni.data.media.media_ref import MediaRef
from muomni.errors import DataError


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
