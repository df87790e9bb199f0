"""Recordings with their texts as what a Talker learns from: codes, and which unit of the text each frame speaks.

Computed once and kept: a folder `pairs-KEY` beside the token indexes, named by a hash of the recordings, their texts,
the codec and the form. Recordings are decoded, brought to one loudness and encoded a few minutes at a time.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import SourceSpec
from muomni.data.index.cache_folder import default_cache_dir, file_stamp, fingerprint, open_or_build, read_meta
from muomni.data.media.audio import load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.speech.forced_alignment import (
    MEL_BINS,
    AlignerSpec,
    Recordings,
    Spoken,
    align,
    features_of,
    pointers_of,
    unit_starts,
)
from muomni.data.speech.manifest import read_manifest, recordings_path
from muomni.data.speech.paired_data import SpeechPairs
from muomni.data.speech.recordings import write_recordings
from muomni.data.speech.spoken_text import clip_words, said_words, units_of
from muomni.errors import DataError, MediaError
from muomni.files import write_json
from muomni.model.codec import SpeechCodec
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.progress import progress_bar

_TEXTS = "texts.json"
_ARRAYS = ("codes", "pointers", "frames", "voices", "sources")
MANIFEST = "manifest.jsonl"
DEFAULT_SPEAKER = "default"
# The loudest sample of a recording: what the codec was validated at.
_PEAK, _SILENT = 0.45, 1e-4
# What is decoded at a time, and what the codec encodes at once.
_CHUNK_SECONDS, _BATCH_SECONDS = 300.0, 48.0
_LONGEST_SECONDS = 60.0
# How many times the usual deviation, and how much at least, a pair's score may be below the usual one.
_SPREADS, _LEAST_GAP = 12.0, 0.5


@dataclass(frozen=True)
class _Pair:
    ref: MediaRef
    text: str
    speaker: str
    source: int


def prepare_pairs(
    sources: Sequence[SourceSpec],
    codec: SpeechCodec,
    *,
    max_advance: int = 8,
    seed: int = 0,
    cache_dir: Path | None = None,
    max_unreadable_fraction: float = 0.0,
    language: str = "en",
    aligner: AlignerSpec | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> SpeechPairs:
    """The pairs of some sources, computed when an earlier call has not left them.

    A source is a manifest whose lines have `audio`, `archive` where one holds it, `text` and perhaps `speaker`; a
    folder with a `manifest.jsonl`, or with other manifests; or a folder of recordings as `muomni data recordings`
    reads it.

    Args:
        sources: see above.
        codec: in evaluation mode, of sound at 16 kHz.
        max_advance: how many units a pointer moves at most from a frame to the next.
        seed: of the alignment.
        cache_dir: where the folder comes to lie; None takes `speech` beside `default_cache_dir()`.
        max_unreadable_fraction: share of recordings that may be unreadable.
        language: of the texts; numbers are put into words in English.
        aligner: how the alignment is learnt; its seed is `seed`.
        progress: show a bar when standard error is a terminal.
        say: told what is done, in a sentence.

    Raises:
        DataError: a source is missing or names no pair, more than `max_unreadable_fraction` of the recordings are
            unreadable, no pair is left, or the cache cannot be written.
    """
    if codec.sample_rate != SAMPLE_RATE:
        raise DataError(f"the codec is for sound at {codec.sample_rate:,} Hz, and pairs are read at {SAMPLE_RATE:,}")
    spec = replace(aligner or AlignerSpec(), seed=seed)
    root = default_cache_dir().parent / "speech" if cache_dir is None else Path(cache_dir).expanduser()
    with tempfile.TemporaryDirectory(prefix="muomni-pairs-") as scratch:
        pairs = [pair for n, source in enumerate(sources) for pair in _pairs(source, n, Path(scratch), language)]
        if not pairs:
            raise DataError("no source of speech was given")
        name = f"pairs-{_fingerprint(pairs, codec, spec, max_advance, language)}"
        open_or_build(
            root,
            name,
            lambda partial: _Preparation(
                pairs, codec, spec, max_advance, max_unreadable_fraction, language, partial
            ).run(progress, say),
        )
    return open_pairs(root / name)


def prepare_split(
    train: Sequence[SourceSpec], val: Sequence[SourceSpec], val_fraction: float, codec: SpeechCodec, **options: Any
) -> tuple[SpeechPairs, SpeechPairs]:
    """Pairs to learn from and to validate on; both are aligned by the same network.

    Args:
        train: sources to learn from.
        val: when empty, `val_fraction` of the pairs is held out, see `SpeechPairs.split`.
        val_fraction: see `val`.
        codec: see `prepare_pairs`.
        options: others of `prepare_pairs`.

    Raises:
        DataError: as `prepare_pairs`, or nothing is left on one side.
    """
    pairs = prepare_pairs([*train, *val], codec, **options)
    if not val:
        return pairs.split(val_fraction)
    of_train = pairs.sources < len(train)
    if of_train.all() or not of_train.any():
        raise DataError(f"{'data.speech.val' if of_train.all() else 'data.speech.train'}: no pair of it can be used")
    return pairs.select(np.flatnonzero(of_train)), pairs.select(np.flatnonzero(~of_train))


def open_pairs(folder: Path) -> SpeechPairs:
    """The pairs of a folder that `prepare_pairs` wrote; the codes are mapped into memory."""
    meta = read_meta(folder)
    if meta is None:
        raise DataError(f"{folder}: is not a whole folder of pairs of text and speech")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    frames = np.array(arrays["frames"])
    return SpeechPairs(
        texts=json.loads((folder / _TEXTS).read_text(encoding="utf-8")),
        voices=np.array(arrays["voices"]),
        speakers=tuple(meta["speakers"]),
        starts=np.cumsum(frames) - frames,
        frames=frames,
        codes=arrays["codes"],
        pointers=arrays["pointers"],
        sources=np.array(arrays["sources"]),
        frame_rate=meta["frame_rate"],
        left_out=tuple(meta["left_out"]),
        key=folder.name,
    )


class _Preparation:
    """One run over the recordings, and one over what it found."""

    def __init__(
        self,
        pairs: Sequence[_Pair],
        codec: SpeechCodec,
        spec: AlignerSpec,
        max_advance: int,
        max_unreadable_fraction: float,
        language: str,
        folder: Path,
    ) -> None:
        self.pairs, self.codec, self.spec, self.folder = pairs, codec, spec, folder
        self.max_advance, self.max_unreadable_fraction, self.language = max_advance, max_unreadable_fraction, language
        self.left_out: list[str] = []
        self.kept: list[_Pair] = []
        self.texts: list[str] = []
        self.units: list[NDArray[np.int64]] = []
        self.lengths: list[int] = []  # frames of features
        self.frames: list[int] = []  # of codes

    def run(self, progress: bool, say: Callable[[str], None]) -> dict[str, Any]:
        """Writes all files; returns the meta data."""
        features, codes = self.folder / "features.raw", self.folder / "codes.raw"
        say(f"encoding {len(self.pairs):,} recordings, then aligning them with their texts; kept for later runs")
        bars = partial(progress_bar, total=1.0, unit="percent", shown=progress)
        with features.open("wb") as mels, codes.open("wb") as frames, bars("encoding speech") as bar:
            for done in self._encode(mels, frames):
                bar.update(done / len(self.pairs))
        if not self.kept:
            raise DataError(f"no pair of text and speech can be used; for example {'; '.join(self.left_out[:3])}")
        stored = np.memmap(features, np.uint8, "r").reshape(-1, MEL_BINS)
        lengths = np.array(self.lengths, np.int64)
        recordings = Recordings(stored, np.cumsum(lengths) - lengths, lengths, self.units)
        with bars("aligning speech with text") as bar:
            spoken = align(recordings, self.spec, bar.update)
        coded = np.memmap(codes, np.uint16, "r").reshape(-1, self.codec.num_codebooks)
        meta = self._write(recordings, spoken, coded, say)
        features.unlink()
        codes.unlink()
        return meta

    def _encode(self, features: BinaryIO, codes: BinaryIO) -> Iterator[int]:
        """Reads, encodes and writes some minutes at a time; yields how many recordings are done."""
        chunk: list[tuple[_Pair, str, Tensor]] = []
        seconds, unreadable = 0.0, 0
        for number, pair in enumerate(self.pairs, 1):
            spoken = " ".join(word.spoken for word in clip_words(pair.text, self.language))
            if not spoken:
                self.left_out.append(f"{pair.ref}: its text has nothing to speak: {pair.text[:60]!r}")
                continue
            try:
                samples = load_audio(pair.ref, _LONGEST_SECONDS)
            except MediaError as error:
                unreadable += 1
                self.left_out.append(str(error))
                continue
            peak = float(np.abs(samples).max())
            chunk.append((pair, spoken, torch.from_numpy(samples * (_PEAK / peak if peak > _SILENT else 1.0))))
            seconds += len(samples) / SAMPLE_RATE
            if seconds >= _CHUNK_SECONDS:
                self._encode_chunk(chunk, features, codes)
                chunk, seconds = [], 0.0
                yield number
        if unreadable > self.max_unreadable_fraction * len(self.pairs):
            raise DataError(
                f"{unreadable} of {len(self.pairs)} recordings cannot be read, more than data.max_unreadable_fraction "
                f"({self.max_unreadable_fraction:g}) allows; for example {'; '.join(self.left_out[:3])}"
            )
        if chunk:
            self._encode_chunk(chunk, features, codes)
        yield len(self.pairs)

    def _encode_chunk(self, chunk: list[tuple[_Pair, str, Tensor]], features: BinaryIO, codes: BinaryIO) -> None:
        """Encodes recordings of about one length together; all come out in their order."""
        order = sorted(range(len(chunk)), key=lambda n: len(chunk[n][2]))
        encoded: dict[int, Tensor] = {}
        begin = 0
        for end in range(1, len(order) + 1):
            padded = (end + 1 - begin) * len(chunk[order[end]][2]) if end < len(order) else 0
            if end == len(order) or padded > _BATCH_SECONDS * SAMPLE_RATE:
                with torch.inference_mode():
                    batch = self.codec.encode([chunk[n][2] for n in order[begin:end]])
                encoded.update(zip(order[begin:end], batch, strict=True))
                begin = end
        for n, (pair, spoken, samples) in enumerate(chunk):
            frames = encoded[n].T.cpu().numpy().astype(np.uint16)
            mel = features_of(samples)
            codes.write(np.ascontiguousarray(frames).tobytes())
            features.write(mel.tobytes())
            self.kept.append(pair)
            self.texts.append(spoken)
            self.units.append(np.array(units_of(said_words(spoken))[0]))
            self.lengths.append(len(mel))
            self.frames.append(len(frames))

    def _write(
        self, recordings: Recordings, spoken: Sequence[Spoken], codes: NDArray[np.uint16], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Keeps the pairs that could be aligned; returns the meta data."""
        config = self.codec.config
        ends = np.cumsum(self.frames)
        limit = _least_score([alignment.score for alignment in spoken])
        pointers, parts, places = [], [], []
        for n, alignment in enumerate(spoken):
            begin = int(recordings.starts[n])
            features = recordings.features[begin : begin + self.lengths[n]]
            pointer = None
            if alignment.score >= limit:
                starts = unit_starts(self.units[n], alignment, features)
                pointer = pointers_of(starts, self.frames[n], config.frame_samples, config.delay, self.max_advance)
            if pointer is None:
                self.left_out.append(f"{self.kept[n].ref}: is not aligned with its text {self.texts[n][:60]!r}")
                continue
            places.append(n)
            pointers.append(pointer.astype(np.uint16))
            parts.append(codes[ends[n] - self.frames[n] : ends[n]])
        if len(places) < len(spoken) / 2:
            raise DataError(
                f"only {len(places)} of {len(spoken)} recordings fit their texts; left out: "
                f"{'; '.join(self.left_out[-3:])}"
            )
        speakers = sorted({self.kept[n].speaker for n in places})
        values: dict[str, NDArray[Any]] = {
            "codes": np.concatenate(parts),
            "pointers": np.concatenate(pointers),
            "frames": np.array([self.frames[n] for n in places], np.int64),
            "voices": np.array([speakers.index(self.kept[n].speaker) for n in places], np.int64),
            "sources": np.array([self.kept[n].source for n in places], np.int64),
        }
        for name in _ARRAYS:
            np.save(self.folder / f"{name}.npy", values[name])
        write_json(self.folder / _TEXTS, [self.texts[n] for n in places])
        seconds = int(values["frames"].sum()) / self.codec.frame_rate
        say(f"{len(places):,} pairs of text and speech, {seconds / 3600:.2f} h; {len(self.left_out):,} left out")
        return {"speakers": speakers, "frame_rate": self.codec.frame_rate, "left_out": self.left_out}


def _least_score(scores: Sequence[float]) -> float:
    """Below it, text and recording are taken for strangers: far worse than usual among these recordings."""
    known = np.array([score for score in scores if score > -np.inf])
    middle = float(np.median(known)) if len(known) else 0.0
    spread = float(np.median(np.abs(known - middle))) if len(known) else 0.0
    return middle - max(_SPREADS * spread, _LEAST_GAP)


def _pairs(source: SourceSpec, number: int, scratch: Path, language: str) -> Iterator[_Pair]:
    path = recordings_path(source)
    if path.is_file():
        manifests = [path]
    elif (path / MANIFEST).is_file():
        manifests = [path / MANIFEST]
    else:
        manifests = sorted(file for file in path.rglob("*.jsonl") if not file.name.startswith("."))
    if not manifests:
        manifests = [scratch / f"{number}.jsonl"]
        write_recordings(path, manifests[0], language=language)
    any_pair = False
    for manifest in manifests:
        for ref, row in read_manifest(manifest, source.text_column):
            any_pair = True
            yield _Pair(ref, row[source.text_column], str(row.get("speaker") or DEFAULT_SPEAKER), number)
    if not any_pair:
        raise DataError(f"{source.path}: names no pair of text and speech")


def _fingerprint(pairs: Sequence[_Pair], codec: SpeechCodec, spec: AlignerSpec, max_advance: int, language: str) -> str:
    """Of all that decides what comes out."""
    files = [[os.path.abspath(path), file_stamp(path)] for path in dict.fromkeys(pair.ref.path for pair in pairs)]
    rows = [[os.path.abspath(p.ref.path), p.ref.member, p.text, p.speaker, p.source] for p in pairs]
    weights = hashlib.blake2b(codec.config.model_dump_json().encode(), digest_size=16)
    for part in (codec.encoder, codec.quantizer):
        for name, tensor in sorted(part.state_dict().items()):
            weights.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return fingerprint(asdict(spec), max_advance, language, files, rows, weights.hexdigest())
