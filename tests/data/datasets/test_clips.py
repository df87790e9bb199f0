"""Recordings decoded once, and the clips that are cut from them."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config import DataSpec
from muomni.data.datasets.clips import ClipDataset
from muomni.data.speech.recording_cache import Sounds, prepare_sounds
from muomni.errors import DataError


def write_wav(path: Path, seconds: float, level: float = 0.1, rate: int = 16_000) -> Path:
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, level * np.sin(2 * np.pi * 300 * time), rate)
    return path


def data(folder: Path, *sources: object, **more: object) -> DataSpec:
    return DataSpec.model_validate({"train": list(sources), "cache_dir": str(folder / "cache"), **more})


def counting(lengths: tuple[int, ...]) -> Sounds:
    """Sources whose samples say where they are."""
    total = sum(lengths)
    bounds = tuple(int(end) for end in np.cumsum(lengths))
    return Sounds(np.arange(total, dtype=np.int16), bounds, len(lengths), (), "key")


def test_manifests_archives_and_folders_are_decoded_once_to_one_level(tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for n in range(3):
        write_wav(sounds / f"{n}.wav", 0.5, level=0.01 * (n + 1))
    archived = write_wav(tmp_path / "z.wav", 1.0, rate=8_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(archived, "z.wav")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": "z.wav", "archive": "a.zip", "text": "x"}) + "\n\n")
    spec = data(tmp_path, str(sounds), str(manifest), val=str(archived))
    train, val = prepare_sounds(spec)
    assert (train.clips, val.clips) == (4, 1)
    assert train.bounds == (3 * (8000 + 4000), 3 * 12_000 + 16_000 + 4000)
    for n in range(3):
        clip = train.samples[n * 12_000 :][:12_000]
        assert np.abs(clip[:8000]).max() == pytest.approx(0.9 * 32767, abs=1) and not clip[8000:].any()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert prepare_sounds(spec)[0].key == train.key
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == before
    write_wav(sounds / "1.wav", 0.6)
    assert prepare_sounds(spec)[0].key != train.key


@pytest.mark.parametrize("damage", ["samples.npy", "meta.json"])
def test_damaged_recordings_are_decoded_anew(tmp_path: Path, damage: str) -> None:
    spec = data(tmp_path, str(write_wav(tmp_path / "a.wav", 0.5)), val=str(write_wav(tmp_path / "b.wav", 0.2)))
    expected = np.array(prepare_sounds(spec)[0].samples)
    for path in (tmp_path / "cache").rglob(damage):
        os.truncate(path, 40)
    np.testing.assert_array_equal(prepare_sounds(spec)[0].samples, expected)


def test_held_out_recordings_are_in_no_training_clip(tmp_path: Path) -> None:
    for n in range(40):
        write_wav(tmp_path / f"{n}.wav", 0.05 + n / 1000)
    train, val = prepare_sounds(data(tmp_path, str(tmp_path), val_fraction=0.3))
    assert train.clips + val.clips == 40 and 3 <= val.clips <= 25
    assert len(train.samples) + len(val.samples) == sum(int((0.05 + n / 1000) * 16_000) + 4000 for n in range(40))


def test_what_cannot_be_read_is_left_out_up_to_a_share(tmp_path: Path) -> None:
    val = str(write_wav(tmp_path / "val.wav", 0.2))
    folder = tmp_path / "sounds"
    folder.mkdir()
    for n in range(3):
        write_wav(folder / f"{n}.wav", 0.2)
    (folder / "broken.wav").write_bytes(b"RIFFxxxx")
    with pytest.raises(DataError, match=r"1 of 4 recordings.*max_unreadable_fraction \(0.1\).*broken.wav"):
        prepare_sounds(data(tmp_path, str(folder), val=val, max_unreadable_fraction=0.1))
    train, _ = prepare_sounds(data(tmp_path, str(folder), val=val, max_unreadable_fraction=0.5))
    assert train.clips == 3 and "broken.wav" in train.bad[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [('{"text": "a"}', '"audio"'), ("no json", "JSON object"), ('{"audio": 3}', "names"), ("[1]", "JSON object")],
)
def test_a_manifest_without_sounds_is_told_by_line(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "m.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=f"line 2.*{word}"):
        prepare_sounds(data(tmp_path, str(tmp_path / "m.jsonl")))


def test_sources_that_name_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="names no sounds"):
        prepare_sounds(data(tmp_path, str(tmp_path / "empty")))
    with pytest.raises(DataError, match="no such"):
        prepare_sounds(data(tmp_path, str(tmp_path / "gone")))
    with pytest.raises(DataError, match='format "text"'):
        prepare_sounds(data(tmp_path, {"path": str(tmp_path), "format": "text"}))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(50, 400), min_size=1, max_size=3), st.integers(10, 50), st.integers(0, 99))
def test_a_clip_depends_on_its_number_alone_and_stays_in_its_source(
    lengths: list[int], samples: int, seed: int
) -> None:
    sounds = counting(tuple(lengths))
    rows, again = (ClipDataset(sounds, samples, seed, gain_db=6.0) for _ in range(2))
    numbers = range(2 * rows.num_rows)
    clips = [rows.row(n) for n in numbers]
    for n in reversed(numbers):
        assert np.array_equal(again.row(n), clips[n])
    plain = ClipDataset(sounds, samples, seed)
    for n in numbers:
        places = np.rint(plain.row(n) * 32768).astype(int)
        assert np.array_equal(places, np.arange(places[0], places[0] + samples))
        assert np.searchsorted(sounds.bounds, places[0], "right") == np.searchsorted(sounds.bounds, places[-1], "right")
    batch = rows.batch(1, 2, stride=2)
    assert np.array_equal(batch.samples.numpy(), np.stack([rows.row(1), rows.row(3)]))
    assert batch.samples.dtype == torch.float32


def test_an_epoch_reads_each_source_as_often_as_its_weight_says() -> None:
    rows = ClipDataset(counting((10_000, 5_000)), 50, weights=(1.0, 2.0))
    assert rows.num_rows == 200 + 200
    for epoch in range(2):
        seen = np.zeros(15_000, int)
        for n in range(epoch * 400, epoch * 400 + 400):
            first = round(float(rows.row(n)[0]) * 32768)
            seen[first : first + 50] += 1
        assert seen[100:9_900].mean() == pytest.approx(1, abs=0.02)
        assert seen[10_100:14_900].mean() == pytest.approx(2, abs=0.04)


def test_epochs_differ_in_training_and_agree_in_validation() -> None:
    sounds = counting((3000,))
    train, val = ClipDataset(sounds, 50), ClipDataset(sounds, 50, shuffle=False)
    assert not np.array_equal(train.row(0), train.row(60))
    assert sorted(train.row(n)[0] for n in range(60)) != sorted(train.row(n)[0] for n in range(60, 120))
    assert np.array_equal(val.row(0), val.row(60))
    assert not np.array_equal(ClipDataset(sounds, 50, seed=1).row(0), train.row(0))


def test_clips_are_made_quieter_within_the_range() -> None:
    sounds = Sounds(np.full(3000, 16_384, np.int16), (3000,), 1, (), "key")
    levels = 20 * np.log10([ClipDataset(sounds, 50, gain_db=20.0).row(n)[0] / 0.5 for n in range(60)])
    assert -20 <= levels.min() < -15 and -5 < levels.max() <= 0


def test_a_source_shorter_than_a_clip_is_refused() -> None:
    with pytest.raises(DataError, match="clip_seconds"):
        ClipDataset(counting((3000, 30)), 50)
