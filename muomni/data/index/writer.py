"""Writes the parts of a token index in one pass over the sources."""

import io
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from muomni.config import AnySource, OmniConfig
from muomni.data.cache_folder import file_stamp
from muomni.data.documents import iter_documents, total_bytes
from muomni.data.index.token_index import AUDIO, DOCUMENT, IMAGE, MEDIUM, Counts
from muomni.data.media.audio import load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.media.processor import MediaProcessor, MediaSize
from muomni.data.sources.readers import Document
from muomni.data.text.chat import encode_chats, text_of
from muomni.data.text.content_parts import MediaPart
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError, MediaError
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.progress import progress_bar

Part = Literal["train", "val"]

# What is encoded at once; the Rust side needs some hundred bytes for each token of it.
_BATCH_CHARS = 1 << 20
_BATCH_DOCUMENTS = 2048


class Split:
    """Which part a document belongs to, by a hash of its text.

    Attributes:
        least, second: the two smallest hashes seen so far.
    """

    def __init__(self, val_fraction: float, held_out: int = -1) -> None:
        self.least = self.second = 1 << 64
        self._below = int(val_fraction * (1 << 64))
        self._held_out = held_out

    def part_of(self, document: Document) -> Part:
        """The part of a document, or of a piece that may be shared out by itself."""
        content = document.text if document.text is not None else json.dumps(document.messages, default=_identity)
        value = int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "big")
        if value < self.least:
            self.least, self.second = value, self.least
        elif self.least < value < self.second:
            self.second = value
        return "val" if value < self._below or value == self._held_out else "train"


def _identity(source: object) -> list[str]:
    """What names a medium without its folder, so that moving a data set moves none of its documents."""
    if isinstance(source, MediaRef):
        return [Path(source.path).name, source.member or ""]
    if isinstance(source, bytes):
        return [blake2b(source, digest_size=16).hexdigest()]
    if hasattr(source, "tobytes"):  # a PIL picture or an array of samples, from the `datasets` library
        return [blake2b(source.tobytes(), digest_size=16).hexdigest()]
    raise TypeError(f"a manifest cannot hold {type(source).__name__}")


@dataclass(frozen=True)
class _Medium:
    """A medium ready to be written: its part with a reference or bytes, its size or what is wrong with it."""

    part: MediaPart
    place: int
    size: MediaSize | MediaError
    note_ids: list[int]


@dataclass(frozen=True)
class _Entry:
    """A document, or a piece of a text, ready to be written; `mask` None says that all is learnt."""

    ids: list[int]
    mask: list[bool] | None
    media: tuple[_Medium, ...] = ()


class IndexWriter:
    """Reads, encodes and writes the documents of some sources.

    Attributes:
        archives: size and time of change of each archive that a document names, once it is written.
    """

    def __init__(
        self, sources: Sequence[AnySource], tokenizer: Tokenizer, config: OmniConfig | None, workers: int, bar: bool
    ) -> None:
        self.sources = sources
        self.tokenizer = tokenizer
        # The smallest type that holds every id.
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.archives: dict[str, list[int]] = {}
        self._encoders = (None, None) if config is None else (config.vision, config.audio)
        self._processor = MediaProcessor(*self._encoders)
        self._workers = workers
        self._bar = bar

    def write(self, folder: Path, parts: Sequence[Part], split: Split) -> dict[Part, Counts]:
        """One pass over the sources; returns the counts of each part."""
        byte_lengths = self.tokenizer.byte_lengths().numpy()
        with ExitStack() as stack:
            total = total_bytes(self.sources) or None
            bar = stack.enter_context(progress_bar("tokenizing", total, unit="bytes", shown=self._bar))
            pool = stack.enter_context(ThreadPoolExecutor(self._workers))
            writers = {
                name: stack.enter_context(_PartWriter(folder / name, self.dtype, byte_lengths)) for name in parts
            }
            for number, spec in enumerate(self.sources):
                current: Part | None = None  # where the document that is being read goes; None between documents
                for batch in batches(iter_documents([spec], bar.advance)):
                    for document, entry in zip(batch, self._encode(batch, pool), strict=True):
                        part = current
                        if part is None or (document.divisible and document.text):
                            part = split.part_of(document)
                        writers[part].add(entry, number, document.origin, begins=part != current)
                        current = None if document.final else part
        return {name: writer.counts() for name, writer in writers.items()}

    def _encode(self, batch: Sequence[Document], pool: Executor) -> Iterator[_Entry]:
        """Ids of each document with its end token, and for conversations which of them are learnt.

        The end token behind a conversation is not learnt: a reply ends with `<|im_end|>`.
        """
        tokenizer = self.tokenizer
        texts = iter(tokenizer.encode_batch([document.text for document in batch if document.text is not None]))
        conversations = [document for document in batch if document.messages is not None]
        encoded = encode_chats(tokenizer, [document.messages or [] for document in conversations])
        for document, chat in zip(conversations, encoded, strict=True):
            self._check(document, chat.media)
            if not any(chat.answer_mask):
                raise DataError(
                    f"{document.origin}: the tokenizer's chat template does not mark the answer with "
                    "<|im_start|>assistant, so it cannot be learnt from"
                )
        parts = [_storable(part) for chat in encoded for part in chat.media]
        captions = tokenizer.encode_batch([part.note or "" for part in parts])
        places = (place for chat in encoded for place in chat.places)
        media = map(_Medium, parts, places, pool.map(self._size, parts), captions)
        chats = iter(encoded)
        for document in batch:
            end = [tokenizer.eos_id] if document.final else []
            if document.text is not None:
                yield _Entry(next(texts) + end, None)
            else:
                chat = next(chats)
                yield _Entry(chat.ids + end, [*chat.answer_mask, False], tuple(next(media) for _ in chat.media))

    def _check(self, document: Document, media: Sequence[MediaPart]) -> None:
        """Refuses media that the model has no encoder for."""
        encoders = dict(zip(("image", "audio"), self._encoders, strict=True))
        if media and not any(self._encoders):
            raise DataError(f"{document.origin}: holds pictures or sounds, but the model has no input for them")
        for part in media:
            if encoders[part.kind] is None:
                what = "a picture" if part.kind == "image" else "a sound"
                raise DataError(f"{document.origin}: holds {what}, but the model has no input for it")
            if isinstance(part.source, MediaRef) and part.source.member is not None:
                self.archives.setdefault(part.source.path, file_stamp(part.source.path))

    def _size(self, part: MediaPart) -> MediaSize | MediaError:
        try:
            return self._processor.size(part.kind, part.source)
        except MediaError as error:
            return error


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents that are encoded together, of bounded size."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) if document.text is not None else _size_of(document)
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size_of(document: Document) -> int:
    size = 0
    for message in document.messages or ():
        size += len(text_of(message))
        if not isinstance(message["content"], str):
            sources = (part[part["type"]] for part in message["content"])
            size += sum(len(source) // 16 for source in sources if isinstance(source, bytes))
    return size


def _storable(part: MediaPart) -> MediaPart:
    """The part with a source that can be written down: a reference or bytes."""
    if isinstance(part.source, MediaRef | bytes):
        return part
    if type(part.source).__module__.partition(".")[0] == "PIL":  # from the `datasets` library
        buffer = io.BytesIO()
        part.source.save(buffer, "PNG")
        return replace(part, source=buffer.getvalue())
    return replace(part, source=_wav(part.source))


def _wav(source: Any) -> Any:
    """Samples as the bytes of a WAV; what is wrong with them is told when their size is asked for."""
    import soundfile

    try:
        samples = load_audio(source, math.inf)
    except MediaError:
        return source
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


class _PartWriter:
    """Writes the files of one part; one without content is not made."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], byte_lengths: NDArray[np.int64]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._byte_lengths = byte_lengths
        self._files: dict[str, BinaryIO] = {}
        self._tokens = self._media = self._refs = self._blobs = 0
        self._text_bytes = self._target_tokens = self._target_bytes = self._bad = 0
        # The document under way, DOCUMENT by DOCUMENT: a text may come in pieces.
        self._open: list[int] | None = None

    def __enter__(self) -> "_PartWriter":
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_document()
        for file in self._files.values():
            file.close()

    def add(self, entry: _Entry, source: int, origin: str, begins: bool) -> None:
        """Appends a document, or goes on with the last one; one with unreadable media is only named."""
        if errors := [medium.size for medium in entry.media if isinstance(medium.size, MediaError)]:
            self._bad += 1
            self._write("bad.jsonl", json.dumps({"origin": origin, "reason": "; ".join(map(str, errors))}) + "\n")
            return
        tokens = np.array(entry.ids, self._dtype)
        if begins or self._open is None:
            self._end_document()
            self._open = [self._tokens, 0, self._media, 0, 0, source]
        longer = self._add_media(entry.media, origin)
        lengths = self._byte_lengths[tokens]
        learnt = self._add_mask(entry.mask, len(tokens))
        self._write("tokens.bin", tokens)
        self._open[1] += len(tokens)
        self._open[3] += len(entry.media)
        self._open[4] += len(tokens) + longer
        self._tokens += len(tokens)
        self._text_bytes += int(lengths.sum())
        self._target_tokens += int(learnt.sum())
        self._target_bytes += int(lengths @ learnt)

    def _add_mask(self, mask: list[bool] | None, count: int) -> NDArray[np.uint8]:
        learnt = np.ones(count, np.uint8) if mask is None else np.array(mask, np.uint8)
        if mask is not None and "mask.bin" not in self._files:
            for done in range(0, self._tokens, 1 << 20):  # everything so far was learnt
                self._write("mask.bin", b"\1" * min(1 << 20, self._tokens - done))
        if mask is not None or "mask.bin" in self._files:
            self._write("mask.bin", learnt)
        return learnt

    def _add_media(self, media: Sequence[_Medium], origin: str) -> int:
        """Writes the records of a document's media; returns by how many tokens they lengthen it."""
        longer = 0
        for number, medium in enumerate(media, 1):
            part, size = medium.part, medium.size
            assert isinstance(size, MediaSize)
            ref: dict[str, Any] = {"origin": origin}
            if isinstance(part.source, bytes):
                ref |= {"name": f"{origin}: {part.kind} {number}", "blob": [self._blobs, len(part.source)]}
                self._write("blobs.bin", part.source)
                self._blobs += len(part.source)
            else:
                ref |= {"name": str(part.source), "path": part.source.path, "member": part.source.member}
            if part.note is not None:
                ref["note"] = part.note
                if part.kind == "image":
                    ref["ids"] = medium.note_ids
            content = json.dumps(ref).encode()
            kind = IMAGE if part.kind == "image" else AUDIO
            shape = (size.rows, size.columns, size.frames, size.tokens)
            record = (kind, part.frame, *shape, medium.place, self._refs, len(content))
            self._write("refs.bin", content)
            self._write("media.bin", np.array(record, MEDIUM))
            self._refs += len(content)
            self._media += 1
            longer += size.tokens - 1
        return longer

    def _end_document(self) -> None:
        if self._open is not None:
            self._write("documents.bin", np.array(tuple(self._open), DOCUMENT))
            self._open = None

    def _write(self, name: str, content: bytes | str | NDArray[Any]) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        if isinstance(content, str):
            content = content.encode()
        self._files[name].write(content if isinstance(content, bytes) else content.tobytes())

    def counts(self) -> Counts:
        """What was written so far."""
        return Counts(self._text_bytes, self._target_tokens, self._target_bytes, self._bad)
