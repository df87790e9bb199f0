"""`muomni say` and `muomni chat --speak` as they are typed, with a model that hums."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from muomni import MuOmni
from muomni.cli import main
from muomni.cli.common import sound
from muomni.cli.common.sound import SpokenReplies
from muomni.errors import SpeechError, UserError
from muomni.infer import Chunk, Reply, Timing
from muomni.infer.speech import Speech, SpeechSettings, SpeechTiming
from tests.infer.speech.models import make_speaking

RATE = 16_000


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return int(stop.value.code or 0)


def hum(text: str) -> torch.Tensor:
    """A tenth of a second for each letter."""
    return torch.linspace(-0.5, 0.5, RATE // 10 * len(text))


class Humming:
    """Says everything but what has no letters; in two pieces where it streams."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.config = SimpleNamespace(thinker=SimpleNamespace(max_position_embeddings=1024))
        self.device = "cpu"
        self.cache_dtype = "auto"

    def say(self, text: str, **settings: Any) -> Speech:
        SpeechSettings.of(**settings)
        self.asked.append((text, settings))
        return Speech(text, hum(text), RATE, SpeechTiming(1, len(text) / 10, len(text) / 100))

    def say_batch(self, texts: Sequence[str], *, on_error: str, **settings: Any) -> list[Speech]:
        assert on_error == "reply"
        return [self.say(text, **settings) if text.strip("!") else silent(text) for text in texts]

    def stream(self, prompt: Any, *, speculate: Any, speak: Any = False, **sampling: Any) -> Any:
        self.asked.append((prompt[-1]["content"], speak))
        return _Humming("Well, yes.", speak)

    def encode(self, prompt: Any) -> list[int]:
        return []

    def num_parameters(self) -> int:
        return 1


def silent(text: str) -> Speech:
    return Speech(text, torch.empty(0), RATE, SpeechTiming(0, 0.0, 0.0), "there is nothing to say")


class _Humming:
    def __init__(self, text: str, speak: Any) -> None:
        self.text, self._speak = text, speak
        self.reply = Reply(text, (), "stop", Timing(1, 3, 0.1, 0.1))

    def __iter__(self) -> Iterator[Chunk]:
        sound = hum(self.text)
        first, second = (sound[:999], sound[999:]) if self._speak is not False else (None, None)
        yield Chunk("Well, ", (1,))
        yield Chunk("yes.", (2,), first, RATE)
        yield Chunk("", (), second, RATE)

    def close(self) -> None: ...


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Humming:
    made = Humming()
    monkeypatch.setattr(MuOmni, "from_pretrained", lambda *args, **options: made)
    return made


def test_a_text_becomes_a_file(model: Humming, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.wav"
    settings = ["--voice", "her", "--temperature", 0.5, "--top-k", 9, "--seed", 3]
    assert run("say", "any", "Hello there.", "--out", out, *settings, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["audio"] == str(out) and values["seconds"] == 1.2 and values["sample_rate"] == RATE
    assert values["timing"]["real_time"] == pytest.approx(0.1)
    assert model.asked == [("Hello there.", {"voice": "her", "temperature": 0.5, "top_k": 9, "seed": 3})]
    samples, rate = soundfile.read(out, dtype="float32")
    assert rate == RATE and soundfile.info(out).subtype == "PCM_16"
    np.testing.assert_allclose(samples, hum("Hello there.").numpy(), atol=1e-4)
    assert run("say", "any", "Hello", "there.", "--out", tmp_path / "a.FLAC") == 0
    assert "1.2 s of speech in 0.12 s, 0.100 of its length" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "a.FLAC").format == "FLAC"
    assert model.asked[-1] == ("Hello\nthere.", {})


def test_texts_come_from_files_and_standard_input(
    model: Humming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, out = tmp_path / "lines.txt", tmp_path / "a.wav"
    lines.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo.\n")
    assert run("say", "any", "--file", lines, "--out", out) == 0
    assert model.asked == [("One.\r\n\r\nTwo.", {})]
    with lines.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        assert run("say", "any", "-", "--out", out) == 0
    assert model.asked[0] == model.asked[1]


def test_each_line_becomes_a_file(model: Humming, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, folder = tmp_path / "lines.txt", tmp_path / "spoken"
    lines.write_text("One.\n\nTwo and a half.\n")
    assert run("say", "any", "--file", lines, "--batch", folder, "--format", "flac", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(folder), "texts": 2, "errors": 0, "seconds": 1.9}
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(row["audio"], row["text"]) for row in rows] == [("0000.flac", "One."), ("0001.flac", "Two and a half.")]
    assert [row["line"] for row in rows] == [1, 3]
    assert soundfile.info(folder / "0001.flac").duration == rows[1]["duration"] == 1.5
    # What was made is training data: text and sound by the names that manifests have.
    from muomni.eval.speech_quality import read_sentences

    assert [sentence.text for sentence in read_sentences(folder / "manifest.jsonl")] == ["One.", "Two and a half."]
    assert run("say", "any", "One.", "--batch", folder) == 2
    assert "is there already" in capsys.readouterr().err


def test_lines_that_cannot_be_said_fail_the_command_and_not_the_others(
    model: Humming, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / os.fsdecode(b"sp\xefken")
    assert run("say", "any", "One.", "!!!", "Two.", "--batch", folder) == 2
    captured = capsys.readouterr()
    assert "2 sounds, 0.8 s" in captured.out and "1 of the texts could not be said" in captured.err
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in rows] == [None, "there is nothing to say", None]
    assert sorted(path.name for path in folder.iterdir()) == ["0000.wav", "0002.wav", "manifest.jsonl"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--out", "a.wav"], "give TEXT"),
        (["Hi.", "--file", "x", "--out", "a.wav"], "not both"),
        (["Hi.", "-", "--out", "a.wav"], "alone"),
        (["Hi."], "where the speech goes"),
        (["Hi.", "--out", "a.wav", "--batch", "b"], "without --out"),
        (["Hi.", "--play", "--batch", "b"], "without --out"),
        (["Hi.", "--out", "a.wav", "--format", "flac"], "--format is for --batch"),
        (["Hi.", "--batch", "b", "--format", "mp3"], "wav or flac"),
        (["Hi.", "--out", "a.mp3"], ".wav or .flac"),
        (["Hi.", "--out", "no/such/a.wav"], "no folder"),
        (["Hi.", "--out", "folder.wav"], "is a folder"),
        (["  ", "--out", "a.wav"], "nothing to say"),
        (["?! 🐱", "--out", "a.wav"], "nothing to say"),
        (["--file", "none.txt", "--out", "a.wav"], "cannot be read"),
        (["--file", "latin.txt", "--out", "a.wav"], "not UTF-8"),
        (["Hi.", "--out", "a.wav", "--temperature", -1], "temperature"),
    ],
)
def test_mistakes_are_told_before_a_model_is_read(
    args: list[object], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.wav").mkdir()
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert run("say", "no-model-of-this-name", *args) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("a.wav").exists()


def test_a_model_without_a_talker_is_refused(nano_folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("say", nano_folder, "Hello.", "--out", tmp_path / "a.wav") == 2
    assert "talker" in capsys.readouterr().err
    assert run("chat", nano_folder, "-m", "Hello.", "--speak", tmp_path / "a.wav") == 2
    assert "talker" in capsys.readouterr().err


def test_a_model_speaks_and_refuses_what_it_has_not(small_tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    speaking = make_speaking(small_tokenizer)
    speaking.save_pretrained(tmp_path / "model")
    out, settings = tmp_path / "a.wav", ["--temperature", 0.5, "--seed", 3, "--device", "cpu"]
    assert run("say", tmp_path / "model", "The cat sat.", "--voice", "ben", "--out", out, *settings, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    reply = speaking.say("The cat sat.", voice="ben", temperature=0.5, seed=3)
    assert reply.audio is not None and values["timing"]["sentences"] == 1
    np.testing.assert_allclose(soundfile.read(out)[0], np.clip(reply.audio.numpy(), -1, 1), atol=1e-4)
    assert run("say", tmp_path / "model", "The cat sat.", "--voice", "carl", "--out", out) == 2
    assert "anna, ben" in capsys.readouterr().err
    batch = tmp_path / "spoken"
    assert run("say", tmp_path / "model", "The cat.", "?!", "--batch", batch, *settings) == 2
    rows = [json.loads(line) for line in (batch / "manifest.jsonl").read_text().splitlines()]
    assert rows[0]["audio"] == "0000.wav" and "nothing to say" in rows[1]["error"]
    told = ["chat", tmp_path / "model", "-m", "Hello there!", "--speak", tmp_path / "b.wav", "--voice", "anna"]
    code = run(*told, "--max-new-tokens", 12, "--ignore-eos", "--seed", 1, "--device", "cpu")
    assert code == 0, capsys.readouterr().err
    assert soundfile.info(tmp_path / "b.wav").duration > 0.1


def test_no_speech_is_an_error_and_no_file(model: Humming, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(model, "say", lambda text, **settings: replace(silent(text), error=None))
    assert run("say", "any", "Hello.", "--out", tmp_path / "a.wav") == 1
    assert "no speech" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_reply_is_spoken(model: Humming, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.wav"
    assert run("chat", "any", "-m", "Is it?", "--speak", out, "--voice", "her") == 0
    assert capsys.readouterr().out == "Well, yes.\n"
    assert model.asked == [("Is it?", {"voice": "her"})]
    np.testing.assert_allclose(soundfile.read(out)[0], hum("Well, yes.").numpy(), atol=1e-4)
    assert run("chat", "any", "-m", "Is it?", "--voice", "her") == 2
    assert run("chat", "any", "-m", "Is it?", "--speak", tmp_path / "no" / "a.wav") == 2


def test_the_replies_of_a_conversation_are_numbered(model: Humming, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", _Lines(["Is it?\n", "And now?\n"]))
    assert run("chat", "any", "--speak", tmp_path / "a.wav") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.wav", "a-2.wav"]


class _Lines(list[str]):
    def isatty(self) -> bool:
        return False


def test_a_reply_without_sound_is_an_error(tmp_path: Path) -> None:
    voiced = SpokenReplies(tmp_path / "a.wav", one=True, played=False)
    voiced.hear(Chunk("🐱", (1,)))
    with pytest.raises(SpeechError, match="nothing of the reply"):
        voiced.finish()


class Devices:
    """Takes the place of `sounddevice`."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.heard: list[Any] = []

    def query_devices(self, kind: str) -> None:
        assert kind == "output"

    def OutputStream(self, samplerate: int, channels: int, dtype: str) -> Any:
        self.opened.append(samplerate)
        return self

    def __enter__(self) -> "Devices":
        return self

    def __exit__(self, *raised: object) -> None:
        self.opened.append(0)

    def write(self, samples: Any) -> None:
        self.heard.append(samples)


def test_speech_is_played(model: Humming, monkeypatch: Any, tmp_path: Path) -> None:
    devices = Devices()
    monkeypatch.setattr(sound, "_sounddevice", lambda: devices)
    assert run("say", "any", "Hi.", "--play") == 0
    assert devices.opened == [RATE, 0] and [len(each) for each in devices.heard] == [1600] * 3
    np.testing.assert_array_equal(np.concatenate(devices.heard)[:, 0], hum("Hi.").numpy())
    devices.heard.clear()
    voiced = SpokenReplies(tmp_path / "a.wav", one=True, played=True)
    with voiced:
        for piece in _Humming("Well.", {}):
            voiced.hear(piece)
        assert voiced.finish() == f"0.5 s of speech in {tmp_path / 'a.wav'}"
    np.testing.assert_array_equal(np.concatenate(devices.heard)[:, 0], hum("Well.").numpy())


def test_playing_stops_and_its_errors_are_told(monkeypatch: Any) -> None:
    devices = Devices()
    monkeypatch.setattr(sound, "_sounddevice", lambda: devices)
    going = threading.Event()

    def waits(samples: Any) -> None:
        if going.wait(10):
            devices.heard.append(samples)

    devices.write = waits
    with pytest.raises(KeyboardInterrupt), sound.Player() as player:
        player.play(np.zeros(RATE, np.float32), RATE)
        threading.Timer(0.2, going.set).start()
        raise KeyboardInterrupt
    assert len(devices.heard) <= 1

    def broken(samples: Any) -> None:
        raise devices.PortAudioError("unplugged")

    devices.write = broken
    with pytest.raises(UserError, match="unplugged"), sound.Player() as player:
        player.play(np.zeros(RATE, np.float32), RATE)


def test_where_nothing_plays_it_is_said(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    def missing() -> Any:
        raise UserError("what plays speech is not installed: pip install 'muomni[play]'")

    monkeypatch.setattr(sound, "_sounddevice", missing)
    assert run("say", "any", "Hi.", "--play") == 2
    assert "muomni[play]" in capsys.readouterr().err
    voiced = SpokenReplies(tmp_path / "a.wav", one=True, played=True)
    for _ in range(2):
        for piece in _Humming("Well.", {}):
            voiced.hear(piece)
        said = voiced.finish()
    assert "not played" not in said and (tmp_path / "a.wav").exists()
