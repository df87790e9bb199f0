"""Recordings with their texts as codes and pointers, computed once."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from muomni.config import SourceSpec
from muomni.config.codec import codec_preset
from muomni.data import said_words, units_of
from muomni.data.speech import pairs as speech_pairs
from muomni.data.speech.forced_alignment import AlignerSpec
from muomni.data.speech.pairs import prepare_pairs, prepare_split
from muomni.errors import DataError
from muomni.model.codec import SpeechCodec

QUICK = AlignerSpec(steps=3)
TEXTS = ["The dog sat.", "Lily ate 2 bones.", "Oh no!", "It ran home, and slept.", "A cat.", "She was glad."]


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    """Tables drawn from sounds, so that codes differ."""
    made = SpeechCodec(codec_preset("nano"), torch.Generator().manual_seed(0)).train()
    torch.manual_seed(0)
    made(torch.randn(4, 640 * 40) * 0.1)
    return made.eval()


def sound(path: Path, seconds: float, seed: int, level: float = 0.1) -> Path:
    drawn = np.random.default_rng(seed)
    samples = (
        level
        * drawn.normal(size=int(seconds * 16_000))
        * np.repeat(drawn.uniform(0, 1, 400), 640)[: int(seconds * 16_000)]
    )
    soundfile.write(path, samples.clip(-1, 1), 16_000)
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six recordings of different lengths: files, and two in an archive."""
    rows: list[dict[str, Any]] = []
    for n, text in enumerate(TEXTS):
        file = sound(tmp_path / f"{n}.wav", 1.0 + (n * 7 % 5) * 0.33, n)
        rows.append({"audio": file.name, "text": text, "speaker": "ann" if n % 2 else "bob"})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n in (1, 4):
            archive.write(tmp_path / f"{n}.wav", f"{n}.wav")
            (tmp_path / f"{n}.wav").unlink()
            rows[n]["archive"] = "a.zip"
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def specs(*paths: Path) -> list[SourceSpec]:
    return [SourceSpec(path=str(path)) for path in paths]


def test_codes_are_those_of_each_recording_alone(
    manifest: Path, codec: SpeechCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces of a chunk, and batches of different lengths.
    monkeypatch.setattr(speech_pairs, "_CHUNK_SECONDS", 4.0)
    monkeypatch.setattr(speech_pairs, "_BATCH_SECONDS", 3.0)
    told: list[str] = []
    pairs = prepare_pairs(specs(manifest), codec, cache_dir=tmp_path / "cache", aligner=QUICK, report=told.append)
    assert len(pairs) == 6 and pairs.speakers == ("ann", "bob") and pairs.frame_rate == codec.frame_rate
    assert told[0].startswith("encoding 6 recordings")
    assert told[1:] == [f"6 pairs of text and speech, {pairs.seconds / 3600:.2f} h; 0 left out"]
    assert pairs.texts[1] == "Lily ate two bones." and pairs.voices.tolist() == [1, 0] * 3
    for n, text in enumerate(pairs.texts):
        if n in (1, 4):
            with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open(f"{n}.wav") as file:
                samples, _ = soundfile.read(file, dtype="float32")
        else:
            samples, _ = soundfile.read(tmp_path / f"{n}.wav", dtype="float32")
        levelled = torch.from_numpy(samples * (0.45 / np.abs(samples).max()))
        part = slice(int(pairs.starts[n]), int(pairs.starts[n] + pairs.frames[n]))
        assert torch.from_numpy(pairs.codes[part].astype(np.int64)).T.equal(codec.encode(levelled))
        pointer = pairs.pointers[part].astype(int)
        assert pointer[0] == 0 and pointer[-1] == len(units_of(said_words(text))[0]) - 1
        assert np.diff(pointer).min() >= 0 and np.diff(pointer).max() <= 8


def test_it_is_computed_once_for_one_input(manifest: Path, codec: SpeechCodec, tmp_path: Path) -> None:
    def prepare(**more: Any) -> str:
        return prepare_pairs(specs(manifest), codec, **{"cache_dir": tmp_path / "cache", "aligner": QUICK, **more}).key

    told: list[str] = []
    key = prepare(report=told.append)
    assert prepare(report=told.append) == key and len(told) == 2
    assert sorted(path.name for path in (tmp_path / "cache" / key).iterdir()) == sorted(
        [*(f"{name}.npy" for name in ("codes", "pointers", "frames", "voices", "sources")), "meta.json", "texts.json"]
    )
    (tmp_path / "cache" / key / "codes.npy").write_bytes(b"damaged")
    assert prepare(report=told.append) == key and len(told) == 4  # computed anew
    keys = {key, prepare(max_advance=12), prepare(aligner=replace(QUICK, seed=1))}
    manifest.write_text(manifest.read_text().replace("Oh no!", "Oh yes!"))
    keys.add(prepare())
    sound(tmp_path / "0.wav", 1.5, 99)
    keys.add(prepare())
    codec.quantizer.sums.mul_(1.5)
    keys.add(prepare())
    codec.quantizer.sums.div_(1.5)
    assert len(keys) == 6


def test_what_cannot_be_used_is_left_out_and_told(manifest: Path, codec: SpeechCodec, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFFxxxx")
    more = [
        {"audio": "broken.wav", "text": "Hello."},
        {"audio": "0.wav", "text": "🙂"},
        {"audio": "0.wav", "text": "far too much " * 60},
    ]
    manifest.write_text(manifest.read_text() + "".join(json.dumps(row) + "\n" for row in more))
    with pytest.raises(DataError, match=r"1 of 9 recordings.*max_unreadable_fraction \(0\).*broken.wav"):
        prepare_pairs(specs(manifest), codec, cache_dir=tmp_path / "cache", aligner=QUICK)
    assert not any((tmp_path / "cache").iterdir())
    pairs = prepare_pairs(
        specs(manifest), codec, cache_dir=tmp_path / "cache", aligner=QUICK, max_unreadable_fraction=0.2
    )
    assert len(pairs) == 6 and len(pairs.left_out) == 3
    for reason, name in zip(pairs.left_out, ("nothing to speak", "broken.wav", "not aligned"), strict=True):
        assert any(name in reason for reason in pairs.left_out), reason


def test_validation_has_sources_of_its_own_or_a_share(manifest: Path, codec: SpeechCodec, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for n in range(2):
        sound(folder / f"{n}.wav", 1.0, 40 + n)
        (folder / f"{n}.txt").write_text("The cat sat.")
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "aligner": QUICK}
    train, val = prepare_split(specs(manifest), specs(folder), 0.0, codec, **options)
    assert (
        len(train) == 6 and list(val.texts) == ["The cat sat."] * 2 and val.speakers[int(val.voices[0])] == "recordings"
    )
    train, val = prepare_split(specs(manifest), [], 0.3, codec, **options)
    assert len(train) + len(val) == 6 and len(val) >= 1 and not set(train.texts) & set(val.texts)


def test_a_folder_is_read_by_its_manifest(manifest: Path, codec: SpeechCodec, tmp_path: Path) -> None:
    rows = manifest.read_text()
    manifest.rename(tmp_path / "manifest.jsonl")
    (tmp_path / "shard-00000.jsonl").write_text(rows)
    assert len(prepare_pairs(specs(tmp_path), codec, cache_dir=tmp_path / "cache", aligner=QUICK)) == 6


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"audio": "a.wav"}', "no json", '{"audio": 3, "text": "a"}', "[1]"])
def test_a_broken_line_is_told(codec: SpeechCodec, tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(DataError, match='line 2.*"audio"'):
        prepare_pairs(specs(tmp_path / "m.jsonl"), codec)


def test_sources_that_name_nothing_are_refused(codec: SpeechCodec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        prepare_pairs(specs(tmp_path / "gone"), codec)
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(DataError, match="names no pair"):
        prepare_pairs(specs(tmp_path / "m.jsonl"), codec)
    with pytest.raises(DataError, match="no source"):
        prepare_pairs([], codec)
    with pytest.raises(DataError, match='format "text"'):
        prepare_pairs([SourceSpec(path=str(tmp_path), format="text")], codec)


def test_a_pair_is_said_in_its_language_and_computed_anew_where_that_changes(
    manifest: Path, codec: SpeechCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[3]["text"] = "Ich habe 3 Katzen"
    languages = {"ann": "de", "bob": "en"}
    lines = [json.dumps(row | {"language": languages[row["speaker"]]}) + "\n" for row in rows]
    manifest.write_text("".join(lines))
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "aligner": QUICK}
    pairs = prepare_pairs(specs(manifest), codec, **options)
    assert (pairs.speakers, pairs.languages) == (("ann", "bob"), ("de", "en"))
    assert pairs.texts[3] == "Ich habe drei Katzen." and pairs.texts[1] == "Lily ate zwei bones."
    assert prepare_pairs(specs(manifest), codec, **options).key == pairs.key
    with monkeypatch.context() as patch:  # as if another version of the normaliser had made them
        patch.setattr(speech_pairs, "clip_words", lambda text, language: said_words("Otherwise."))
        assert prepare_pairs(specs(manifest), codec, **options).key != pairs.key
    plain = [json.dumps({**row, "speaker": "eva"}) + "\n" for row in rows]
    manifest.write_text("".join(plain))
    assert prepare_pairs(specs(manifest), codec, language="de", **options).languages == ("de",)
    manifest.write_text("".join([*plain[:-1], json.dumps(rows[-1] | {"speaker": "eva", "language": "fr"})]))
    with pytest.raises(DataError, match='is in "fr", and other recordings of eva are in "de"'):
        prepare_pairs(specs(manifest), codec, language="de", **options)
    manifest.write_text(json.dumps(rows[0] | {"language": "German"}))
    with pytest.raises(DataError, match="line 1: \"language\" = 'German'"):
        prepare_pairs(specs(manifest), codec, **options)


def test_what_a_line_holds_takes_no_other_with_it(manifest: Path, codec: SpeechCodec, tmp_path: Path) -> None:
    sound(tmp_path / "silent.wav", 1.0, 1, level=0.0)
    more = [
        {"audio": "silent.wav", "text": "Hello."},
        {"audio": "0.wav", "text": "1" * 5000},
        {"audio": "0.wav", "text": "A line \u2028 separator."},
    ]
    manifest.write_text(manifest.read_text() + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in more))
    pairs = prepare_pairs(specs(manifest), codec, cache_dir=tmp_path / "cache", aligner=QUICK)
    assert len(pairs) == 7 and "A line separator." in pairs.texts
    assert [sum(word in reason for reason in pairs.left_out) for word in ("is silent", "not aligned")] == [1, 1]
