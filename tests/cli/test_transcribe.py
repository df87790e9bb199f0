"""`muomni transcribe`: files in, text out, and what is wrong with one is told without losing the others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from muomni import MuOmni

MuOmniCommand = Callable[..., Any]


@pytest.fixture(scope="module")
def run(omni: MuOmni, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "omni"
    omni.save_pretrained(folder)
    return folder


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, pitch in (("a.wav", 300), ("b.flac", 500)):
        soundfile.write(name, 0.3 * np.sin(2 * np.pi * pitch * np.arange(16_000) / 16_000), 16_000)
    (tmp_path / "bad.wav").write_text("This is no sound, but a text of some length.")
    return tmp_path


def test_text_and_json(muomni: MuOmniCommand, omni: MuOmni, run: Path, sounds: Path) -> None:
    a, b = (each.text for each in omni.transcribe(["a.wav", "b.flac"]))
    assert a != b and a and b
    assert muomni("transcribe", run, "a.wav")[:2] == (0, f"{a}\n")
    assert muomni("transcribe", run, "a.wav", "b.flac").out == f"a.wav: {a}\nb.flac: {b}\n"
    rows = list(map(json.loads, muomni("transcribe", run, "a.wav", "b.flac", "--format", "json").out.splitlines()))
    assert rows == [{"file": "a.wav", "text": a, "seconds": 1.0}, {"file": "b.flac", "text": b, "seconds": 1.0}]
    assert muomni("transcribe", run, "-", stdin=Path("a.wav").read_bytes()).out == f"{a}\n"
    assert muomni("transcribe", run, "a.wav", "--hint", "The cat").out != f"{a}\n"


def test_a_file_for_each_recording(muomni: MuOmniCommand, omni: MuOmni, run: Path, sounds: Path) -> None:
    a, b = (each.text for each in omni.transcribe(["a.wav", "b.flac"]))
    result = muomni("transcribe", run, "a.wav", "b.flac", "--out", "new/texts")
    assert result == (0, "", "")
    assert Path("new/texts/a.txt").read_text() == f"{a}\n" and Path("new/texts/b.txt").read_text() == f"{b}\n"
    muomni("transcribe", run, "-", "--out", "new", "--format", "json", stdin=Path("a.wav").read_bytes())
    row = {"file": "standard input", "text": a, "seconds": 1.0}
    assert json.loads(Path("new/standard input.json").read_text()) == row


def test_a_bad_file_among_good_ones(muomni: MuOmniCommand, omni: MuOmni, run: Path, sounds: Path) -> None:
    a, b = (each.text for each in omni.transcribe(["a.wav", "b.flac"]))
    files = ["a.wav", "bad.wav", "none.wav", "b.flac"]
    result = muomni("transcribe", run, *files)
    assert result.code == 2 and result.out == f"a.wav: {a}\nb.flac: {b}\n"
    lines = result.err.splitlines()
    assert len(lines) == 3 and "bad.wav: is no whole sound" in lines[0] and "none.wav: no such file" in lines[1]
    assert lines[2] == "muomni: 2 of 4 recordings could not be written down"
    rows = [json.loads(line) for line in muomni("transcribe", run, *files, "--format", "json").out.splitlines()]
    assert [row["file"] for row in rows] == files and ["error" in row for row in rows] == [False, True, True, False]
    assert muomni("transcribe", run, *files, "--out", "texts").code == 2
    assert sorted(path.name for path in Path("texts").iterdir()) == ["a.txt", "b.txt"]
    one = muomni("transcribe", run, "none.wav")
    assert (one.code, one.err) == (2, "muomni: none.wav: no such file\n")
    empty = muomni("transcribe", run, "-")
    assert (empty.code, empty.err) == (2, "muomni: standard input: is empty\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.wav --format srt", "--format srt: no model gives times"),
        ("- -", "give it once"),
        ("a.wav x/a.mp3 --out texts", "texts/a.txt would be written for 2 recordings"),
        ("a.wav a.wav --out texts", "texts/a.txt would be written for 2 recordings"),
        ("a.wav --out b.flac", "b.flac: cannot be written"),
    ],
)
def test_mistakes_are_told(muomni: MuOmniCommand, run: Path, sounds: Path, words: str, message: str) -> None:
    result = muomni("transcribe", run, *words.split())
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1 and not result.out
    assert not Path("texts").exists()
