"""Recordings decoded once, and rows cut from them: what a codec is trained on.

Sources are JSON-lines manifests whose rows name sounds (`audio`, and `archive` where one holds them; text and all
else is not needed), sound files, and folders of either. Each recording is decoded to 16 kHz, brought to the same
peak, and written behind the others into one file of 16-bit samples, 115 MB an hour, which later runs map into memory.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import AnySource, DataSpec, SyntheticSpec
from muomni.data.cache_folder import default_cache_dir, fingerprint, open_or_build
from muomni.data.media.audio import load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.speech.manifest import (
    SILENT,
    SOUND_SUFFIXES,
    check_unreadable,
    describe_files,
    find_manifests,
    read_manifest,
    recordings_path,
)
from muomni.errors import DataError, MediaError
from muomni.files import user_path
from muomni.ops.audio_frames import SAMPLE_RATE

_SAMPLES = "samples.npy"
# Seconds of silence between two recordings.
_PAUSE = 0.25
# The loudest sample that recordings are brought to.
_PEAK = 0.9


@dataclass(frozen=True)
class Sounds:
    """Recordings of some sources, one behind the other.

    Attributes:
        samples: (S,) int16 at 16 kHz, mapped into memory.
        bounds: where the recordings of each source end in them.
        clips: how many recordings there are.
        bad: those that could not be read, with the reason.
        key: identifies their content.
    """

    samples: NDArray[np.int16]
    bounds: tuple[int, ...]
    clips: int
    bad: tuple[str, ...]
    key: str

    @property
    def seconds(self) -> float:
        """Of all recordings, with the pauses between them."""
        return len(self.samples) / SAMPLE_RATE


def prepare_sounds(data: DataSpec) -> tuple[Sounds, Sounds]:
    """The recordings to learn from and to validate on; those held out are chosen by a hash of their names.

    Raises:
        DataError: a source is missing, names no sound, or more than `data.max_unreadable_fraction` of the recordings
        cannot be read.
    """
    fraction = 0.0 if data.val else data.val_fraction
    train = [[ref for ref in references(source) if not _held_out(ref, fraction)] for source in data.train]
    if data.val:
        val = [list(references(source)) for source in data.val]
    else:
        val = [[ref for ref in references(source) if _held_out(ref, fraction)] for source in data.train]
        val = [refs for refs in val if refs]
    folder = user_path(data.cache_dir) if data.cache_dir is not None else default_cache_dir().parent / "sounds"
    for refs, name in ((train, "train"), (val, "val")):
        if not any(refs) or not all(refs):
            raise DataError(f"{name}: a source has no recording to use; name others, or give data.val of its own")
    return build_sounds(train, folder, data.max_unreadable_fraction), build_sounds(
        val, folder, data.max_unreadable_fraction
    )


def build_sounds(sources: Sequence[Sequence[MediaRef]], folder: Path, max_unreadable_fraction: float = 0.0) -> Sounds:
    """Decodes recordings, or opens what an earlier call left.

    Args:
        sources: the recordings of each, at least one.
        folder: where caches lie.
        max_unreadable_fraction: share of recordings that may be unreadable; they are left out.

    Raises:
        DataError: more are unreadable, or none is left.
    """
    described = [[describe_files(refs), *([ref.path, ref.member] for ref in refs)] for refs in sources]
    name = f"sounds-{fingerprint(described)}"
    meta = open_or_build(folder, name, lambda partial: _write(sources, partial, max_unreadable_fraction))
    samples = np.load(folder / name / _SAMPLES, mmap_mode="r")
    return Sounds(samples, tuple(meta["bounds"]), meta["clips"], tuple(meta["bad"]), name)


def _write(sources: Sequence[Sequence[MediaRef]], partial: Path, max_unreadable_fraction: float) -> dict[str, Any]:
    """Decodes into `partial`; only one recording at a time is in memory. Returns the meta data."""
    raw = partial / "raw"
    pause = np.zeros(int(_PAUSE * SAMPLE_RATE), np.int16)
    bounds: list[int] = []
    bad: list[str] = []
    done = clips = 0
    with raw.open("wb") as file:
        for refs in sources:
            for ref in refs:
                try:
                    levelled = _levelled(load_audio(ref))
                except MediaError as error:
                    bad.append(str(error))
                    continue
                for part in (levelled, pause):
                    file.write(part.tobytes())
                    done += len(part)
                clips += 1
            bounds.append(done)
    check_unreadable(bad, clips + len(bad), max_unreadable_fraction)
    stored = np.lib.format.open_memmap(partial / _SAMPLES, "w+", np.int16, (done,))
    stored[:] = np.memmap(raw, np.int16, "r")
    stored.flush()
    raw.unlink()
    return {"bounds": bounds, "clips": clips, "bad": bad}


def _levelled(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """With the usual peak; silence as it is."""
    peak = float(np.abs(samples).max())
    factor = _PEAK / peak if peak >= SILENT else 1.0
    levelled: NDArray[np.int16] = np.rint(np.clip(samples * factor, -1, 1) * 32767).astype(np.int16)
    return levelled


def references(source: AnySource) -> Iterator[MediaRef]:
    """The sounds that a source names, in the order of manifests and of file names.

    Raises:
        DataError: it is missing, names no sound, or a line of a manifest does not name one.
    """
    if isinstance(source, SyntheticSpec):
        raise DataError(f"{source.path}: a codec learns from recordings: `muomni data synth` makes files of these")
    path = recordings_path(source)
    any_sound = False
    for file in find_manifests(path) or _sounds_below(path):
        sounds = (ref for ref, _ in read_manifest(file)) if file.suffix == ".jsonl" else [MediaRef("audio", str(file))]
        for ref in sounds:
            any_sound = True
            yield ref
    if not any_sound:
        kinds = ", ".join((*SOUND_SUFFIXES, ".jsonl"))
        raise DataError(f"{source.path}: names no sounds; it must be or hold {kinds}")


def _sounds_below(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]


def _held_out(ref: MediaRef, fraction: float) -> bool:
    name = ref.member or Path(ref.path).name
    number = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")
    return number < fraction * 2**64
