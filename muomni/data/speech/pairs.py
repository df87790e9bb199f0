"""Recordings with their texts as what a Talker learns from: codes, and which unit of the text each frame speaks.

Computed once and kept: a folder `pairs-KEY` beside the token indexes, named by a hash of the recordings, their texts,
the codec and the form. Recordings are decoded, brought to one loudness and encoded a few minutes at a time.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import SourceSpec
from muomni.data.cache_folder import default_cache_dir, fingerprint, open_or_build, read_meta
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
from muomni.data.speech.manifest import (
    SILENT,
    check_unreadable,
    describe_files,
    find_manifests,
    read_manifest,
    recordings_path,
)
from muomni.data.speech.paired_data import SpeechPairs
from muomni.data.speech.recordings import write_recordings
from muomni.data.speech.spoken_text import clip_words, said_words, units_of
from muomni.errors import DataError, MediaError
from muomni.files import user_path, write_json
from muomni.model.codec import SpeechCodec
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.progress import progress_bar

_TEXTS = "texts.json"
_ARRAYS = ("codes", "pointers", "frames", "voices", "sources")
DEFAULT_SPEAKER = "default"
# The loudest sample of a recording: what the codec was validated at.
_PEAK = 0.45
# What is decoded at a time, and what the codec encodes at once.
_CHUNK_SECONDS, _BATCH_SECONDS = 300.0, 48.0
_LONGEST_SECONDS = 60.0
# How many times the usual deviation, and how much at least, a pair's score may be below the usual one.
_SPREADS, _LEAST_GAP = 12.0, 0.5


@dataclass(frozen=True)
class _Pair:
    """A line of a manifest; `spoken` is its text as the Talker reads it."""

    ref: MediaRef
    text: str
    spoken: str
    speaker: str
    language: str
    source: int


def prepare_pairs(
    sources: Sequence[SourceSpec],
    codec: SpeechCodec,
    *,
    max_advance: int = 8,
    cache_dir: Path | None = None,
    max_unreadable_fraction: float = 0.0,
    language: str = "en",
    aligner: AlignerSpec | None = None,
    report: Callable[[str], None] | None = None,
) -> SpeechPairs:
    """The pairs of some sources, computed when an earlier call has not left them.

    A source is a manifest whose lines have `audio`, `archive` where one holds it, `text` and perhaps `speaker` and
    `language`; a folder with a `manifest.jsonl`, or with other manifests; or a folder of recordings as `muomni data
    recordings` reads it. Pairs whose texts are said otherwise than before are computed anew.

    Args:
        sources: see above.
        codec: in evaluation mode, of sound at 16 kHz.
        max_advance: how many units a pointer moves at most from a frame to the next.
        cache_dir: where the folder comes to lie; None takes `speech` beside `default_cache_dir()`.
        max_unreadable_fraction: share of recordings that may be unreadable.
        language: of the texts whose manifest names none.
        aligner: how the alignment is learnt.
        report: told what is done, in a sentence; with it a bar is shown where standard error is a terminal.

    Raises:
        DataError: a source is missing or names no pair, a speaker has two languages, more than
            `max_unreadable_fraction` of the recordings are unreadable, no pair is left, or the cache cannot be written.
    """
    if codec.sample_rate != SAMPLE_RATE:
        raise DataError(f"the codec is for sound at {codec.sample_rate:,} Hz, and pairs are read at {SAMPLE_RATE:,}")
    spec = aligner or AlignerSpec()
    root = default_cache_dir().parent / "speech" if cache_dir is None else user_path(cache_dir)
    with tempfile.TemporaryDirectory(prefix="muomni-pairs-") as scratch:
        pairs = [pair for n, source in enumerate(sources) for pair in _pairs(source, n, Path(scratch), language)]
        if not pairs:
            raise DataError("no source of speech was given")
        name = f"pairs-{_fingerprint(pairs, codec, spec, max_advance)}"
        work = _Preparation(pairs, codec, spec, max_advance, max_unreadable_fraction)
        open_or_build(root, name, lambda folder: work.run(folder, report))
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
        languages=tuple(meta["languages"]),
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
    ) -> None:
        self.pairs, self.codec, self.spec = pairs, codec, spec
        self.max_advance, self.max_unreadable_fraction = max_advance, max_unreadable_fraction
        self.languages = _languages(pairs)
        self.left_out: list[str] = []
        self.kept: list[_Pair] = []
        self.units: list[NDArray[np.int64]] = []
        self.lengths: list[int] = []  # frames of features
        self.frames: list[int] = []  # of codes

    def run(self, folder: Path, report: Callable[[str], None] | None) -> dict[str, Any]:
        """Writes all files; returns the meta data."""
        features, codes = folder / "features.raw", folder / "codes.raw"
        say = report or (lambda _: None)
        say(f"encoding {len(self.pairs):,} recordings, then aligning them with their texts; kept for later runs")
        bars = partial(progress_bar, total=1.0, unit="percent", shown=report is not None)
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
        meta, kept = self._write(folder, recordings, spoken, coded)
        features.unlink()
        codes.unlink()
        hours = int(kept.sum()) / self.codec.frame_rate / 3600
        say(f"{len(kept):,} pairs of text and speech, {hours:.2f} h; {len(self.left_out):,} left out")
        return meta

    def _encode(self, features: BinaryIO, codes: BinaryIO) -> Iterator[int]:
        """Reads, encodes and writes some minutes at a time; yields how many recordings are done."""
        chunk: list[tuple[_Pair, Tensor]] = []
        seconds = 0.0
        unreadable: list[str] = []
        for number, pair in enumerate(self.pairs, 1):
            if not pair.spoken:
                self.left_out.append(f"{pair.ref}: its text has nothing to speak: {pair.text[:60]!r}")
                continue
            try:
                samples = load_audio(pair.ref, _LONGEST_SECONDS)
            except MediaError as error:
                unreadable.append(str(error))
                continue
            peak = float(np.abs(samples).max())
            if peak < SILENT:
                self.left_out.append(f"{pair.ref}: is silent")
                continue
            chunk.append((pair, torch.from_numpy(samples * (_PEAK / peak))))
            seconds += len(samples) / SAMPLE_RATE
            if seconds >= _CHUNK_SECONDS:
                self._encode_chunk(chunk, features, codes)
                chunk, seconds = [], 0.0
                yield number
        check_unreadable(unreadable, len(self.pairs), self.max_unreadable_fraction)
        self.left_out += unreadable
        if chunk:
            self._encode_chunk(chunk, features, codes)
        yield len(self.pairs)

    def _encode_chunk(self, chunk: list[tuple[_Pair, Tensor]], features: BinaryIO, codes: BinaryIO) -> None:
        """Encodes recordings of about one length together; all come out in their order."""
        order = sorted(range(len(chunk)), key=lambda n: len(chunk[n][1]))
        encoded: dict[int, Tensor] = {}
        begin = 0
        for end in range(1, len(order) + 1):
            padded = (end + 1 - begin) * len(chunk[order[end]][1]) if end < len(order) else 0
            if end == len(order) or padded > _BATCH_SECONDS * SAMPLE_RATE:
                with torch.inference_mode():
                    batch = self.codec.encode([chunk[n][1] for n in order[begin:end]])
                encoded.update(zip(order[begin:end], batch, strict=True))
                begin = end
        for n, (pair, samples) in enumerate(chunk):
            frames = encoded[n].T.cpu().numpy().astype(np.uint16)
            mel = features_of(samples)
            codes.write(np.ascontiguousarray(frames).tobytes())
            features.write(mel.tobytes())
            self.kept.append(pair)
            self.units.append(np.array(units_of(said_words(pair.spoken))[0]))
            self.lengths.append(len(mel))
            self.frames.append(len(frames))

    def _write(
        self, folder: Path, recordings: Recordings, spoken: Sequence[Spoken], codes: NDArray[np.uint16]
    ) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """Keeps the pairs that could be aligned; returns the meta data and the number of frames of each."""
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
                self.left_out.append(f"{self.kept[n].ref}: is not aligned with its text {self.kept[n].spoken[:60]!r}")
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
            np.save(folder / f"{name}.npy", values[name])
        write_json(folder / _TEXTS, [self.kept[n].spoken for n in places])
        languages = [self.languages[name] for name in speakers]
        meta = {"speakers": speakers, "languages": languages, "frame_rate": self.codec.frame_rate}
        return meta | {"left_out": self.left_out}, values["frames"]


def _least_score(scores: Sequence[float]) -> float:
    """Below it, text and recording are taken for strangers: far worse than usual among these recordings."""
    known = np.array([score for score in scores if score > -np.inf])
    middle = float(np.median(known)) if len(known) else 0.0
    spread = float(np.median(np.abs(known - middle))) if len(known) else 0.0
    return middle - max(_SPREADS * spread, _LEAST_GAP)


def _pairs(source: SourceSpec, number: int, scratch: Path, language: str) -> Iterator[_Pair]:
    path = recordings_path(source)
    manifests = find_manifests(path)
    if not manifests:
        manifests = [scratch / f"{number}.jsonl"]
        write_recordings(path, manifests[0], language=language)
    any_pair = False
    for manifest in manifests:
        for ref, row in read_manifest(manifest, source.text_column):
            any_pair = True
            text, spoken_in = row[source.text_column], row.get("language", language)
            spoken = " ".join(word.spoken for word in clip_words(text, spoken_in))
            yield _Pair(ref, text, spoken, str(row.get("speaker") or DEFAULT_SPEAKER), spoken_in, number)
    if not any_pair:
        raise DataError(f"{source.path}: names no pair of text and speech")


def _languages(pairs: Sequence[_Pair]) -> dict[str, str]:
    """The language of each speaker.

    Raises:
        DataError: one has two.
    """
    languages: dict[str, str] = {}
    for pair in pairs:
        known = languages.setdefault(pair.speaker, pair.language)
        if known != pair.language:
            raise DataError(
                f'{pair.ref}: is in "{pair.language}", and other recordings of {pair.speaker} are in "{known}": '
                "a voice has one language; name another speaker"
            )
    return languages


def _fingerprint(pairs: Sequence[_Pair], codec: SpeechCodec, spec: AlignerSpec, max_advance: int) -> str:
    """Of all that decides what comes out."""
    files = describe_files(pair.ref for pair in pairs)
    rows = [
        [os.path.abspath(p.ref.path), p.ref.member, p.text, p.spoken, p.speaker, p.language, p.source] for p in pairs
    ]
    weights = hashlib.blake2b(codec.config.model_dump_json().encode(), digest_size=16)
    for part in (codec.encoder, codec.quantizer):
        for name, tensor in sorted(part.state_dict().items()):
            weights.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return fingerprint(asdict(spec), max_advance, files, rows, weights.hexdigest())
