"""Writes the parts of a token cache in one pass over the sources."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from muomni.config import SourceSpec
from muomni.data.media.media_ref import MediaRef
from muomni.data.sources.readers import Document
from muomni.data.sources.sources import iter_documents, total_bytes
from muomni.data.text.chat import encode_chats, has_media, text_of
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError

Part = Literal["train", "val"]

# What is encoded at once; the Rust side needs some hundred bytes for each token of it.
_BATCH_CHARS = 1 << 20
_BATCH_DOCUMENTS = 2048


@dataclass(frozen=True)
class PartMeta:
    """Counts of one part.

    Attributes:
        documents, tokens: how many.
        text_bytes: UTF-8 bytes of all text, special tokens not counted.
        target_tokens: tokens that are learnt: all of plain text, the answers of conversations.
        target_bytes: UTF-8 bytes of those tokens' text.
        masked: there is a `mask.bin`.
    """

    documents: int
    tokens: int
    text_bytes: int
    target_tokens: int
    target_bytes: int
    masked: bool


class Split:
    """Which part a document belongs to, by a hash of its text."""

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
    raise TypeError(f"a manifest cannot hold {type(source).__name__}")


def write_parts(
    folder: Path,
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    parts: Sequence[Part],
    split: Split,
    progress: bool,
) -> dict[Part, PartMeta]:
    """One pass over the sources; returns the counts of each part."""
    byte_lengths = tokenizer.byte_lengths().numpy()
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar(total_bytes(sources), progress))
        writers: dict[Part, _PartWriter] = {}
        for name in parts:
            writers[name] = stack.enter_context(_PartWriter(folder / name, token_dtype(tokenizer), byte_lengths))
        current: Part | None = None  # where the document that is being read goes; None between documents
        for batch in batches(iter_documents(sources, advance)):
            for document, (ids, mask) in zip(batch, _encode(batch, tokenizer), strict=True):
                part = current
                if part is None or (document.divisible and document.text):
                    part = split.part_of(document)
                writers[part].add(ids, mask, begins=part != current)
                current = None if document.final else part
    return {name: writer.meta() for name, writer in writers.items()}


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents that are encoded together, of bounded size."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) if document.text is not None else _size(document)
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(document: Document) -> int:
    size = 0
    for message in document.messages or ():
        size += len(text_of(message))
        if not isinstance(message["content"], str):
            sources = (part[part["type"]] for part in message["content"])
            size += sum(len(source) // 16 for source in sources if isinstance(source, bytes))
    return size


def _encode(batch: Sequence[Document], tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[bool] | None]]:
    """Ids of each document with its end token, and for conversations which of them are learnt.

    The end token behind a conversation is not learnt: a reply ends with `<|im_end|>`.
    """
    for document in batch:
        if has_media(document.messages or ()):
            raise DataError(f"{document.origin}: holds pictures or sounds, but the model has no input for them")
    texts = iter(tokenizer.encode_batch([document.text for document in batch if document.text is not None]))
    chats = iter(encode_chats(tokenizer, [document.messages for document in batch if document.messages is not None]))
    for document in batch:
        end = [tokenizer.eos_id] if document.final else []
        if document.text is not None:
            yield next(texts) + end, None
        else:
            chat = next(chats)
            if not any(chat.answer_mask):
                raise DataError(
                    f"{document.origin}: the tokenizer's chat template does not mark the answer with "
                    "<|im_start|>assistant, so it cannot be learnt from"
                )
            yield chat.ids + end, [*chat.answer_mask, False]


class _PartWriter:
    """Writes the files of one part."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], byte_lengths: NDArray[np.int64]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._byte_lengths = byte_lengths
        self._documents = self._tokens = self._text_bytes = self._target_tokens = self._target_bytes = 0
        self._mask: BinaryIO | None = None

    def __enter__(self) -> "_PartWriter":
        self._folder.mkdir(exist_ok=True)
        self._token_file = (self._folder / "tokens.bin").open("wb")
        self._offset_file = (self._folder / "offsets.bin").open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._token_file, self._offset_file, self._mask):
            if file is not None:
                file.close()

    def add(self, ids: list[int], mask: list[bool] | None, begins: bool) -> None:
        """Appends tokens.

        Args:
            mask: which of them are learnt; None for all.
            begins: they begin a document, rather than going on with the last one.
        """
        tokens = np.array(ids, dtype=self._dtype)
        lengths = self._byte_lengths[tokens]
        if begins:
            self._offset_file.write(np.int64(self._tokens).tobytes())
            self._documents += 1
        if mask is not None and self._mask is None:
            self._mask = (self._folder / "mask.bin").open("wb")
            for done in range(0, self._tokens, 1 << 20):  # everything so far was learnt
                self._mask.write(b"\1" * min(1 << 20, self._tokens - done))
        learnt = np.ones(len(tokens), np.uint8) if mask is None else np.array(mask, np.uint8)
        if self._mask is not None:
            self._mask.write(learnt.tobytes())
        self._token_file.write(tokens.tobytes())
        self._tokens += len(tokens)
        self._text_bytes += int(lengths.sum())
        self._target_tokens += int(learnt.sum())
        self._target_bytes += int(lengths @ learnt)

    def meta(self) -> PartMeta:
        """What was written so far."""
        return PartMeta(
            self._documents,
            self._tokens,
            self._text_bytes,
            self._target_tokens,
            self._target_bytes,
            self._mask is not None,
        )


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


@contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes read, on a terminal only; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("tokenizing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = wanted and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task("", total=total or None)
        yield lambda count: bar.advance(task, count)
