"""Writes the parts of a media index in one pass over the sources."""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import OmniConfig, SourceSpec
from muomni.data.index.media_format import AUDIO, DOCUMENT, IMAGE, MEDIUM, IndexMeta, describe_archive
from muomni.data.index.token_cache_writer import Part, Split, batches, progress_bar, token_dtype
from muomni.data.media.audio import SAMPLE_RATE, audio_seconds, num_frames, num_tokens
from muomni.data.media.image import picture_size, token_grid
from muomni.data.media.media_ref import MediaRef, name_of
from muomni.data.sources.readers import Document
from muomni.data.sources.sources import iter_documents, total_bytes
from muomni.data.text.chat import encode_chats
from muomni.data.text.content_parts import MediaPart
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError, MediaError


@dataclass(frozen=True)
class Probed:
    """What a header tells; see MEDIUM."""

    rows: int = 0
    columns: int = 0
    frames: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Probe:
    """Finds from a medium's header how many tokens the encoders give for it."""

    config: OmniConfig

    def check(self, document: Document, media: Sequence[MediaPart]) -> None:
        """Refuses media that the model has no encoder for."""
        for part in media:
            if (self.config.vision if part.kind == "image" else self.config.audio) is None:
                what = "a picture" if part.kind == "image" else "a sound"
                raise DataError(f"{document.origin}: holds {what}, but the model has no input for it")

    def __call__(self, part: MediaPart) -> Probed | MediaError:
        """What the header tells, or why it cannot be read."""
        try:
            if part.kind == "image":
                assert self.config.vision is not None
                rows, columns = token_grid(picture_size(part.source), self.config.vision)
                return Probed(rows, columns, 0, rows * columns)
            assert self.config.audio is not None
            seconds = audio_seconds(part.source)
            if seconds > self.config.audio.max_seconds:
                name, limit = name_of(part.source), self.config.audio.max_seconds
                return MediaError(f"{name}: is {seconds:.1f} s long, more than the model hears ({limit:g} s)")
            frames = num_frames(round(seconds * SAMPLE_RATE))
            return Probed(0, 0, frames, num_tokens(frames))
        except MediaError as error:
            return error


def write_index(
    folder: Path,
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    probe: Probe,
    val_fraction: float,
    workers: int,
    progress: bool,
) -> dict[str, Any]:
    """Writes the parts; returns the meta data."""
    split = Split(val_fraction)
    counts, archives = _write(folder, sources, tokenizer, probe, split, val_fraction, workers, progress)
    if val_fraction and not all(part.target_tokens for part in counts.values()) and split.least < split.second:
        # So few documents that chance left a part empty.
        split = Split(0.0, held_out=split.least)
        counts, archives = _write(folder, sources, tokenizer, probe, split, val_fraction, workers, progress)
    names = ", ".join(spec.path for spec in sources)
    if not any(part.target_tokens for part in counts.values()):
        bad = sum(part.bad for part in counts.values())
        why = f"; {bad} documents were left out because of media that cannot be read" if bad else ""
        raise DataError(f"{names}: holds nothing to learn from{why}")
    if not all(part.target_tokens for part in counts.values()):
        raise DataError(f"{names}: is too little to hold some out for validation; name other files in data.val")
    return {
        "dtype": token_dtype(tokenizer).name,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "archives": archives,
        "parts": {name: asdict(part) for name, part in counts.items()},
    }


def _write(
    folder: Path,
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    probe: Probe,
    split: Split,
    val_fraction: float,
    workers: int,
    progress: bool,
) -> tuple[dict[Part, IndexMeta], dict[str, list[int]]]:
    parts: tuple[Part, ...] = ("train", "val") if val_fraction else ("train",)
    byte_lengths = tokenizer.byte_lengths().numpy()
    archives: dict[str, list[int]] = {}
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar(total_bytes(sources), progress))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        writers: dict[Part, _PartWriter] = {}
        for name in parts:
            writers[name] = stack.enter_context(_PartWriter(folder / name, token_dtype(tokenizer), byte_lengths))
        for number, spec in enumerate(sources):
            current: Part | None = None  # where the document that is being read goes
            for batch in batches(iter_documents([spec], advance)):
                for document, entry in zip(batch, _encode(batch, tokenizer, probe, pool), strict=True):
                    part = current
                    if part is None or (document.divisible and document.text):
                        part = split.part_of(document)
                    writers[part].add(entry, number, document.origin, begins=part != current)
                    current = None if document.final else part
                    for medium in entry.media:
                        source = medium.source
                        if isinstance(source, MediaRef) and source.member is not None and source.path not in archives:
                            archives[source.path] = describe_archive(source.path)
    return {name: writer.meta() for name, writer in writers.items()}, archives


@dataclass(frozen=True)
class _Entry:
    """A document, or a piece of a text, ready to be written; `probed` goes with `media`."""

    ids: list[int]
    mask: list[bool] | None
    media: tuple[MediaPart, ...] = ()
    places: tuple[int, ...] = ()
    probed: tuple[Probed | MediaError, ...] = ()
    caption_ids: tuple[tuple[int, ...], ...] = ()


def _encode(batch: Sequence[Document], tokenizer: Tokenizer, probe: Probe, pool: Executor) -> Iterator[_Entry]:
    texts = iter(tokenizer.encode_batch([document.text for document in batch if document.text is not None]))
    found = encode_chats(tokenizer, [document.messages for document in batch if document.messages is not None])
    conversations = [document for document in batch if document.messages is not None]
    for document, chat in zip(conversations, found, strict=True):
        probe.check(document, chat.media)
        if not any(chat.answer_mask):
            raise DataError(
                f"{document.origin}: the tokenizer's chat template does not mark the answer with "
                "<|im_start|>assistant, so it cannot be learnt from"
            )
    media = [_stored(part) for chat in found for part in chat.media]
    probes = iter(pool.map(probe, media))
    captions = iter(tokenizer.encode_batch([part.note or "" for part in media]))
    stored = iter(media)
    chats = iter(found)
    for document in batch:
        end = [tokenizer.eos_id] if document.final else []
        if document.text is not None:
            yield _Entry(next(texts) + end, None)
        else:
            encoded = next(chats)
            count = range(len(encoded.media))
            yield _Entry(
                encoded.ids + end,
                [*encoded.answer_mask, False],
                tuple(next(stored) for _ in count),
                encoded.places,
                tuple(next(probes) for _ in count),
                tuple(tuple(next(captions)) for _ in count),
            )


def _stored(part: MediaPart) -> MediaPart:
    """The part with a source that can be written down: a reference or bytes."""
    if isinstance(part.source, MediaRef | bytes):
        return part
    if type(part.source).__module__.partition(".")[0] == "PIL":  # from the `datasets` library
        buffer = io.BytesIO()
        part.source.save(buffer, "PNG")
        return MediaPart(part.kind, buffer.getvalue(), part.note, part.frame)
    raise DataError(f"a manifest cannot hold a {part.kind} as {type(part.source).__name__}")


class _PartWriter:
    """Writes the files of one part."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], byte_lengths: NDArray[np.int64]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._byte_lengths = byte_lengths
        self._tokens = self._media = self._documents = self._length = 0
        self._target_tokens = self._target_bytes = self._refs = self._blobs = self._bad = 0
        # The document under way: a text may come in pieces.
        self._open: NDArray[Any] | None = None

    def __enter__(self) -> "_PartWriter":
        self._folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            names = ("tokens.bin", "mask.bin", "documents.bin", "media.bin", "refs.bin", "blobs.bin", "bad.jsonl")
            self._files = {name: stack.enter_context((self._folder / name).open("wb")) for name in names}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._stack.close()

    def add(self, entry: _Entry, source: int, origin: str, begins: bool) -> None:
        """Appends a document, or goes on with the last one; one with unreadable media is only named."""
        errors = [found for found in entry.probed if isinstance(found, MediaError)]
        if errors:
            self._bad += 1
            line = {"origin": origin, "reason": "; ".join(map(str, errors))}
            self._files["bad.jsonl"].write(json.dumps(line).encode() + b"\n")
            return
        tokens = np.array(entry.ids, self._dtype)
        learnt = np.ones(len(tokens), np.uint8) if entry.mask is None else np.array(entry.mask, np.uint8)
        if begins or self._open is None:
            self._flush()
            self._open = np.zeros((), DOCUMENT)
            self._open["start"], self._open["medium"], self._open["source"] = self._tokens, self._media, source
        longer = self._add_media(entry, origin)
        self._files["tokens.bin"].write(tokens.tobytes())
        self._files["mask.bin"].write(learnt.tobytes())
        self._open["count"] += len(tokens)
        self._open["media"] += len(entry.media)
        self._open["length"] += len(tokens) + longer
        self._tokens += len(tokens)
        self._length += len(tokens) + longer
        self._target_tokens += int(learnt.sum())
        self._target_bytes += int(self._byte_lengths[tokens] @ learnt)

    def _add_media(self, entry: _Entry, origin: str) -> int:
        """Writes the records of an entry's media; returns by how much they lengthen it."""
        longer = 0
        for number, (part, found) in enumerate(zip(entry.media, entry.probed, strict=True)):
            assert isinstance(found, Probed)
            ref: dict[str, Any] = {"origin": origin}
            if isinstance(part.source, bytes):
                ref |= {"name": f"{origin}: {part.kind} {number + 1}", "blob": [self._blobs, len(part.source)]}
                self._files["blobs.bin"].write(part.source)
                self._blobs += len(part.source)
            else:
                ref |= {"name": str(part.source), "path": part.source.path, "member": part.source.member}
            if part.note is not None:
                ref["note"] = part.note
                if part.kind == "image":
                    ref["ids"] = list(entry.caption_ids[number])
            content = json.dumps(ref).encode()
            record = np.zeros((), MEDIUM)
            record["kind"] = IMAGE if part.kind == "image" else AUDIO
            record["frame"], record["place"] = part.frame, entry.places[number]
            record["rows"], record["columns"] = found.rows, found.columns
            record["frames"], record["tokens"] = found.frames, found.tokens
            record["ref"], record["size"] = self._refs, len(content)
            self._files["refs.bin"].write(content)
            self._files["media.bin"].write(record.tobytes())
            self._refs += len(content)
            self._media += 1
            longer += found.tokens - 1
        return longer

    def _flush(self) -> None:
        if self._open is not None:
            self._files["documents.bin"].write(self._open.tobytes())
            self._documents += 1
            self._open = None

    def meta(self) -> IndexMeta:
        """What was written; complete once the writer is closed."""
        return IndexMeta(
            self._documents,
            self._media,
            self._tokens,
            self._length,
            self._target_tokens,
            self._target_bytes,
            self._refs,
            self._blobs,
            self._bad,
        )
