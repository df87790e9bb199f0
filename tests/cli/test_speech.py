"""`muomni data speech`, `muomni data recordings` and `muomni eval RUN speak` as they are typed."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from muomni.cli import main
from muomni.data.media.audio import Samples
from muomni.eval import speech_quality


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    return int(stop.value.code or 0)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[1] / "data" / "standin_synthesiser.py"
    monkeypatch.setattr("muomni.data.speech.espeak_client.installed_library", lambda: ("", ""))
    monkeypatch.setattr("muomni.data.speech.espeak_worker.__file__", str(script))


@pytest.mark.usefixtures("standin")
def test_speech_from_texts_without_the_held_out_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.txt").write_text("He has 2 dogs. He has a cat. He has a CAT! No. They all ran home together.")
    (tmp_path / "val.txt").write_text("They all ran home together.")
    speak = ["data", "speech", str(tmp_path / "train.txt"), "--exclude", str(tmp_path / "val.txt"), "--workers", "2"]
    speak += ["--min-words", "3"]
    assert run(*speak, "--out", str(tmp_path / "out"), "--json", "--voice", "en-us+f3:150") == 0
    made = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path(made["manifest"]).read_text().splitlines()]
    assert sorted(row["text"] for row in rows) == ["He has a cat.", "He has two dogs."]
    assert made["clips"] == 2
    assert run(*speak, "--out", str(tmp_path / "more"), "--count", "3") == 2
    assert "only 2 different sentences" in capsys.readouterr().err
    assert run(*speak, "--out", str(tmp_path / "more"), "--voice", "en-us", "--voice", "de") == 2
    assert run(*speak, "--out", str(tmp_path / "more"), "--format", "mp3") == 2


@pytest.mark.usefixtures("standin")
def test_short_sentences_belong_to_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"The {name} dog saw the cat." for name in ("old", "big", "red", "sad", "shy", "wet", "new", "fat", "bad")]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "Oh no!", "1" * 5000, "It has \u2028 a tail."]))
    assert run("data", "speech", str(tmp_path / "train.txt"), "--out", str(tmp_path / "a"), "--json") == 0
    rows = [
        json.loads(line) for line in Path(json.loads(capsys.readouterr().out)["manifest"]).read_text().split("\n")[:-1]
    ]
    assert {row["language"] for row in rows} == {"en"}
    texts = [row["text"] for row in rows if len(row["text"].split()) <= 2]
    assert "Oh no!" in texts and len(texts) == 2 and len(rows) == 12
    assert run("data", "speech", str(tmp_path / "train.txt"), "--out", str(tmp_path / "b"), "--count", "9") == 0
    assert len((tmp_path / "b" / "manifest.jsonl").read_text().split("\n")[:-1]) == 9
    assert run("data", "speech", "x", "--out", str(tmp_path / "c"), "--min-words", "3", "--short-share", "0.2") == 2
    assert "--short-share 0.2: needs --min-words of at most 2" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not Unicode")
def test_names_that_are_not_utf_8_are_printed(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/vo\xefx"))
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(os.fsencode(folder / name), np.full(16_000, 0.5), 16_000)
    (folder / "a.txt").write_text("Good morning.")
    assert run("data", "recordings", str(folder), "--out", str(folder / "out.jsonl")) == 0
    assert b"vo\\udcefx" in capsysbinary.readouterr().out
    rows = (folder / "out.jsonl").read_text().replace('"audio": "', '"audio": "vo\\udcefx/')
    (tmp_path / "all.jsonl").write_text(rows + rows.replace("a.wav", "none.wav"))
    assert run("data", "check", str(tmp_path / "all.jsonl"), "--out", str(folder / "report"), "--json") == 1
    problems = json.loads(capsysbinary.readouterr().out)
    assert json.loads((folder / "report" / "problems.json").read_text()) == problems
    assert "none.wav" in str(problems) and "a.wav" not in str(problems["problems"])
    assert run("data", "check", str(folder / "out.jsonl")) == 2
    assert b"must be UTF-8: rename" in capsysbinary.readouterr().err


def test_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.5), 16_000)
    soundfile.write(tmp_path / "b.wav", np.full(16_000, 0.5), 16_000)
    (tmp_path / "a.txt").write_text("Good morning.")
    assert run("data", "recordings", str(tmp_path), "--out", str(tmp_path / "out.jsonl")) == 0
    out = capsys.readouterr().out
    assert "left out: b.wav: has no text" in out and "1 recordings" in out


@pytest.mark.usefixtures("standin")
def test_the_gate_passes_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear(clips: list[Samples], workers: int, report: object, lm: object) -> list[str]:
        return ["he has a cat" if len(clip) > 10_000 else "he" for clip in clips]

    monkeypatch.setattr(speech_quality, "transcribe_all", hear)
    monkeypatch.setattr("muomni.eval.recogniser.check_installed", lambda: None)
    (tmp_path / "val.txt").write_text("He has a cat.")
    original = tmp_path / "original"
    assert run("data", "speech", str(tmp_path / "val.txt"), "--out", str(original), "--short-share", "0") == 0
    manifest, out = str(original / "manifest.jsonl"), tmp_path / "judged"
    gate = ["--data", manifest, "--max-real-time", "100", "--json"]
    capsys.readouterr()
    assert run("eval", "espeak:en-us", "speak", *gate, "--out", str(out)) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == []
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", "0000.wav", "spectrograms-1.png"}
    assert run("eval", "espeak:en-us:400", "speak", *gate) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["speech"]["truncated"] == 1 and len(report["failures"]) == 2
    assert run("eval", "espeak:en-us:80", "speak", "--data", manifest, "--max-real-time", "100") == 1
    printed = capsys.readouterr().out
    assert "failed: share run-on 100.0%, at most 0.0%" in printed
    assert re.search(r"words +sentences +failed +misheard.*3-5 +1 +100\.0% \(1\) +0\.0% \(0\)", printed, re.DOTALL)


def test_a_model_without_a_talker_is_refused(
    nano_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muomni.eval.recogniser.check_installed", lambda: None)
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.5), 16_000)
    (tmp_path / "rows.jsonl").write_text('{"text": "Hello there.", "audio": "a.wav"}\n')
    code = run("eval", str(nano_folder), "speak", "--data", str(tmp_path / "rows.jsonl"))
    assert (code, "no talker" in capsys.readouterr().err) == (2, True)
