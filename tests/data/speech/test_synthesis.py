"""Pairs of text and speech: what is made, stopped, completed and refused; and the synthesiser itself where it is."""

import errno
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from muomni.data.media.audio import load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.data.speech import synthesis
from muomni.data.speech.espeak_client import Synthesiser, SynthesisError, Voice, installed_library
from muomni.data.speech.synthesis import SpeechSettings, make_speech, trim_silence
from muomni.data.validation.check import check_manifests
from muomni.errors import DataError, UserError

STANDIN = Path(__file__).parents[1].joinpath("standin_synthesiser.py")
SENTENCES = [f"It was {word} again." for word in ("one", "two", "three", "four", "five", "six", "seven")]
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="needs the synthesiser: pip install 'muomni[speech]'",
)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.speech.espeak_client.installed_library", lambda: ("", ""))
    monkeypatch.setattr("muomni.data.speech.espeak_worker.__file__", str(STANDIN))
    monkeypatch.setattr(synthesis, "SHARD_CLIPS", 3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("standin")
def test_a_manifest_that_the_readers_take(tmp_path: Path) -> None:
    made = make_speech(SENTENCES, tmp_path / "out", SpeechSettings((Voice("en-us", "f3", 160),)), workers=2)
    rows = [json.loads(line) for line in made.manifest.read_text().splitlines()]
    assert [row["text"] for row in rows] == SENTENCES
    assert {row["speaker"] for row in rows} == {"en-us+f3"}
    assert (made.clips, made.shards, made.found) == (7, 3, 0)
    for row in rows:
        samples = load_audio(MediaRef("audio", str(tmp_path / "out" / row["archive"]), row["audio"]))
        assert len(samples) / 16_000 == pytest.approx(row["duration"], abs=0.01)
        # 0.05 s a letter, and of the second of silence behind it 0.1 s is left.
        assert row["duration"] == pytest.approx(len(row["text"]) * 0.05 + 0.1, abs=0.02)
    assert sum(row["duration"] for row in rows) == pytest.approx(made.seconds)
    found = check_manifests([made.manifest])
    assert (found.sounds, found.problems) == (7, [])


@pytest.mark.usefixtures("standin")
def test_workers_and_a_second_run_change_nothing(tmp_path: Path) -> None:
    settings = SpeechSettings((Voice("en-us"), Voice("de")), speed_spread=0.2, pitch_spread=20, format="wav")
    make_speech(SENTENCES, tmp_path / "a", settings)
    make_speech(SENTENCES, tmp_path / "b", settings, workers=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    done: list[int] = []
    assert make_speech(SENTENCES, tmp_path / "a", settings, report=done.append).found == 3
    assert sum(done) == 7
    voices = [settings.voice_for(sentence) for sentence in SENTENCES]
    assert len({voice.speed for voice in voices}) > 3
    assert {voice.name for voice in voices} == {"en-us", "de"}
    assert settings.voice_for("IT WAS one, again?") == voices[0]


@pytest.mark.usefixtures("standin")
def test_killed_and_completed_is_the_same(tmp_path: Path) -> None:
    make_speech(SENTENCES, tmp_path / "whole", SpeechSettings())
    program = f"""
import os, signal
from pathlib import Path
from muomni.data.speech import espeak_client, espeak_worker, synthesis
espeak_client.installed_library = lambda: ("", "")
espeak_worker.__file__ = {str(STANDIN)!r}
synthesis.SHARD_CLIPS = 3
done = []
def report(count):
    done.append(count)
    if len(done) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
synthesis.make_speech({SENTENCES!r}, Path({str(tmp_path / "killed")!r}), synthesis.SpeechSettings(), report=report)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(synthesis.__file__).parents[3]).returncode == -9
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert "shard-00000.jsonl" in names and "manifest.jsonl" not in names
    assert any(name.startswith(".partial") for name in names)
    assert make_speech(SENTENCES, tmp_path / "killed", SpeechSettings()).found == 1
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.usefixtures("standin")
def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = synthesis.encode

    def full(*args: object) -> bytes:
        calls.append(args)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(synthesis, "encode", full)
    with pytest.raises(DataError, match="disk is full"):
        make_speech(SENTENCES, tmp_path / "out", SpeechSettings())
    assert not list((tmp_path / "out").glob(".partial*"))
    assert make_speech(SENTENCES, tmp_path / "out", SpeechSettings()).found == 1

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="MB are needed for 7 sentences"):
        make_speech(SENTENCES, tmp_path / "other", SpeechSettings())


@pytest.mark.usefixtures("standin")
def test_what_is_refused(tmp_path: Path) -> None:
    make_speech(SENTENCES, tmp_path / "out", SpeechSettings())
    with pytest.raises(DataError, match="seed was 0, now 1"):
        make_speech(SENTENCES, tmp_path / "out", SpeechSettings(seed=1))
    with pytest.raises(DataError, match="sentences was 7, now 6"):
        make_speech(SENTENCES[:6], tmp_path / "out", SpeechSettings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(DataError, match=r"not empty.*diary\.txt"):
        make_speech(SENTENCES, tmp_path / "mine", SpeechSettings())
    with pytest.raises(DataError, match="no sentences"):
        make_speech([], tmp_path / "none", SpeechSettings())
    with pytest.raises(UserError, match="there is no voice 'xx'"):
        make_speech(SENTENCES, tmp_path / "voice", SpeechSettings((Voice("xx"),)))
    with pytest.raises(SynthesisError, match=r"'They crash again\.'.*process ended \(code 3\)"):
        make_speech(["They crash again."], tmp_path / "crash", SpeechSettings())
    with pytest.raises(SynthesisError, match="nothing of it is spoken"):
        make_speech(["It is nothing."], tmp_path / "silent", SpeechSettings())
    with pytest.raises(DataError, match="0.9 in speed"):
        SpeechSettings(speed_spread=0.9)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'muomni\[speech\]'"):
        Synthesiser()


@needs_espeak
@pytest.mark.parametrize(
    ("library", "data", "why"),
    [
        ("none.so", "data", "none.so is missing"),
        ("broken.so", "data", "broken.so does not load"),
        (None, "empty", "its voices in .*empty are missing"),
    ],
)
def test_each_fault_of_the_package_says_its_own(
    library: str | None, data: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF")
    (tmp_path / "empty").mkdir()
    paths = (installed_library()[0] if library is None else str(tmp_path / library), str(tmp_path / data))
    monkeypatch.setattr("muomni.data.speech.espeak_client.installed_library", lambda: paths)
    with Synthesiser() as synthesiser, pytest.raises(UserError, match=f"cannot be used: .*{why}.*install it anew"):
        synthesiser.say("Hello.")


@pytest.mark.parametrize("text", ["", "+f3", "en-us:", "en-us:fast", "en-us:160:50:1", "en-us:79", "en-us:160:100"])
def test_wrong_voices(text: str) -> None:
    with pytest.raises(UserError, match="voice"):
        Voice.parse(text)


def test_voices_read_what_they_write() -> None:
    for voice in (Voice(), Voice("en-us", "f3", 140, 30), Voice.parse("de:200")):
        assert Voice.parse(str(voice)) == voice
    assert Voice.parse("de:200") == Voice("de", "", 200)


def test_silence_is_cut_off_at_both_ends() -> None:
    sound = np.concatenate([np.zeros(5000), np.full(1000, 0.5), np.zeros(400), np.full(10, -0.5), np.zeros(9000)])
    assert len(trim_silence(sound.astype(np.float32), 1000, 0.1)) == 100 + 1410 + 100
    assert len(trim_silence(np.zeros(7, np.float32), 1000)) == 7


@needs_espeak
def test_espeak_speaks_the_same_again(tmp_path: Path) -> None:
    settings = SpeechSettings((Voice("en-us"), Voice("en-us", "f3")), speed_spread=0.1)
    for name in ("a", "b"):
        make_speech(SENTENCES[:3], tmp_path / name, settings)
        time.sleep(1.01)  # eSpeak's own noise begins with the second of its start
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with Synthesiser() as synthesiser:
        slow, rate = synthesiser.say("Once upon a time there was a cat.", "en-us:120")
        fast, _ = synthesiser.say("Once upon a time there was a cat.", "en-us:240")
        assert rate == 22_050 and 1.5 < len(slow) / len(fast) < 2.5
        voices, variants = synthesiser.voices()
        assert {"en-us", "de"} <= set(voices) and {"f3", "m3"} <= set(variants)
        with pytest.raises(UserError, match="no variant 'f99'"):
            synthesiser.say("Hello.", "en-us+f99")
        with pytest.raises(UserError, match="no voice 'zz'"):
            synthesiser.say("Hello.", "zz")
        with pytest.raises(SynthesisError, match="more than 1 s"):
            synthesiser.say("This is a sentence of more than a second.", max_seconds=1)
        assert len(synthesiser.say("And now it speaks again.")[0]) > 20_000
