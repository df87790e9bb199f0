"""A user's own recordings as a manifest."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.data.speech.recordings import write_recordings
from muomni.data.validation.check import check_manifests
from muomni.errors import DataError


def record(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, int(seconds * 16_000))
    soundfile.write(os.fsencode(path), noise, 16_000)


def rows_of(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_metadata_as_in_ljspeech(tmp_path: Path) -> None:
    folder = tmp_path / "linda"
    record(folder / "wavs" / "a.wav")
    record(folder / "wavs" / "b.wav", 1.5)
    record(folder / "c.flac")
    lines = ['a|He had 3 "dogs|He had three "dogs', "b|It was 1984, they say.", "c|Hello there.|"]
    (folder / "metadata.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    found = write_recordings(folder, tmp_path / "sets" / "linda.jsonl")
    assert (found.clips, found.left_out) == (3, []) and found.seconds == pytest.approx(3.5)
    rows = rows_of(tmp_path / "sets" / "linda.jsonl")
    assert {row["audio"]: row["text"] for row in rows} == {
        "../linda/wavs/a.wav": "He had three dogs.",
        "../linda/wavs/b.wav": "It was nineteen eighty-four, they say.",
        "../linda/c.flac": "Hello there.",
    }
    assert {row["speaker"] for row in rows} == {"linda"}
    assert check_manifests([tmp_path / "sets" / "linda.jsonl"]).count("missing") == 0


def test_texts_beside_the_sounds_and_what_is_left_out(tmp_path: Path) -> None:
    good, reasons = (
        ["ann/a.wav", "bob/a.wav"],
        {
            "ann/no_text.wav": "has no text",
            "ann/empty.wav": "no clear reading",
            "bob/broken.wav": "is cut off",
            "bob/long.wav": "longer than the 5 s",
            "bob/other.wav": "do not match",
        },
    )
    for name in [*good, *reasons]:
        record(tmp_path / name, 6 if "long" in name else 1)
        if "no_text" not in name:
            (tmp_path / name).with_suffix(".txt").write_text("" if "empty" in name else "Good morning.")
    (tmp_path / "bob" / "broken.wav").write_bytes((tmp_path / "bob" / "a.wav").read_bytes()[:9999])
    (tmp_path / "bob" / "other.txt").write_text("This is much more than anybody says in one second of time.")
    found = write_recordings(tmp_path, tmp_path / "all.jsonl", max_seconds=5)
    assert [(row["audio"], row["speaker"]) for row in rows_of(tmp_path / "all.jsonl")] == [
        ("ann/a.wav", "ann"),
        ("bob/a.wav", "bob"),
    ]
    left_out = dict(found.left_out)
    assert left_out.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in left_out[name]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        write_recordings(tmp_path / "none", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="holds no recordings"):
        write_recordings(tmp_path, tmp_path / "out.jsonl")
    (tmp_path / "metadata.csv").write_text("a|There is no such sound.\n")
    with pytest.raises(DataError, match=r"none of 1 recordings can be used.*a\.wav: there is a text but no sound"):
        write_recordings(tmp_path, tmp_path / "out.jsonl")
    (tmp_path / "metadata.csv").write_text("a|One.\nb\n")
    with pytest.raises(DataError, match="line 2: must be NAME"):
        write_recordings(tmp_path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_one_bad_recording_takes_no_other_with_it(tmp_path: Path) -> None:
    reasons = {
        "latin.wav": "is not UTF-8 text",
        "silent.wav": "is silent",
        "nan.wav": "NaN",
        "digits.wav": "do not match",
        "phone.m4a": "m4a",
    }
    for name in ("a.wav", "b.aiff", "c.OPUS", *reasons):
        (tmp_path / name).with_suffix(".txt").write_text("Good morning.")
        if Path(name).suffix == ".wav":
            record(tmp_path / name)
    tone = np.sin(np.arange(16_000) / 8) / 2
    soundfile.write(tmp_path / "b.aiff", tone, 16_000)
    soundfile.write(tmp_path / "c.OPUS", tone, 16_000, format="OGG", subtype="OPUS")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe.")
    (tmp_path / "digits.txt").write_text("1" * 5000)
    (tmp_path / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    found = write_recordings(tmp_path, tmp_path / "all.jsonl")
    assert [row["audio"] for row in rows_of(tmp_path / "all.jsonl")] == ["a.wav", "b.aiff", "c.OPUS"]
    left_out = dict(found.left_out)
    assert left_out.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in f"{name}: {left_out[name]}"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not Unicode")
def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/vo\xefx"))
    record(folder / "a.wav")
    (folder / "a.txt").write_text("Good morning.")
    assert write_recordings(folder, tmp_path / "out.jsonl").clips == 1
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert row["speaker"] == "vo?x" and (tmp_path / str(row["audio"])).is_file()
    assert check_manifests([tmp_path / "out.jsonl"]).count("missing") == 0


def test_texts_are_said_in_their_language(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("Ich habe 3 Katzen.")
    write_recordings(tmp_path, tmp_path / "out.jsonl", language="de")
    assert rows_of(tmp_path / "out.jsonl")[0]["text"] == "Ich habe drei Katzen."
    assert rows_of(tmp_path / "out.jsonl")[0]["language"] == "de"
    with pytest.raises(DataError, match='numbers in "xx" cannot be put into words'):
        write_recordings(tmp_path, tmp_path / "out.jsonl", language="xx")
    with pytest.raises(DataError, match="language = 'deutsch!'"):
        write_recordings(tmp_path, tmp_path / "out.jsonl", language="deutsch!")
