import importlib.util
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from muomni.data.speech.espeak_client import Synthesiser
from muomni.data.speech.espeak_client import Voice as Speaker
from muomni.serve.realtime.session import ServerVad
from muomni.serve.realtime.silero import WINDOW, SileroVoice, load_silero
from muomni.serve.realtime.vad import EnergyVoice, Mark, TurnDetector, Voice

RATE = 16_000
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="needs the synthesiser: pip install 'muomni[speech]'"
)
needs_silero = pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed")


def silero() -> Voice:
    network = load_silero()
    assert network is not None
    return SileroVoice(network)


VOICES = [pytest.param(EnergyVoice, id="energy"), pytest.param(silero, id="silero", marks=needs_silero)]


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> list[Any]:
    folder = shared_data / "speech" / "librispeech_sample"
    rows = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines() if line.strip()]
    with zipfile.ZipFile(folder / "librispeech.zip") as archive:
        return [soundfile.read(io.BytesIO(archive.read(row["audio"])), dtype="float32")[0] for row in rows[:3]]


def in_noise(speech: Any, noise: float) -> Any:
    """Speech behind a second and a half of silence and before three seconds of it, all in noise."""
    sound = np.concatenate((np.zeros(24_000), speech, np.zeros(48_000)))
    return (sound + np.random.default_rng(0).standard_normal(len(sound)) * noise).astype(np.float32)


def turns(voice: Voice, sound: Any, step: int = 777, **settings: Any) -> list[Mark]:
    detector = TurnDetector(voice, ServerVad(type="server_vad", **settings), 0, 60 * RATE)
    return [mark for start in range(0, len(sound), step) for mark in detector.push(sound[start : start + step])]


def loud(speech: Any) -> tuple[float, float]:
    """Seconds between which speech is within 30 dB of its loudest, behind 1.5 s of silence."""
    windows = speech[: len(speech) // WINDOW * WINDOW].reshape(-1, WINDOW)
    level = 10 * np.log10((windows**2).mean(1) + 1e-12)
    on = np.nonzero(level > level.max() - 30)[0]
    return 1.5 + on[0] * WINDOW / RATE, 1.5 + (on[-1] + 1) * WINDOW / RATE


@pytest.mark.parametrize("make", VOICES)
@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_recording_is_one_turn_from_its_first_word_to_its_last(
    recordings: list[Any], make: Callable[[], Voice], noise: float
) -> None:
    for speech in recordings:
        begin, end = loud(speech)
        marks = turns(make(), in_noise(speech, noise), prefix_padding_ms=0, silence_duration_ms=1200)
        assert [mark.begins for mark in marks] == [True, False]
        assert abs(marks[0].place / RATE - begin) < 0.7
        assert abs(marks[1].place / RATE - end - 1.2) < 0.6


@needs_espeak
@pytest.mark.parametrize("make", VOICES)
def test_made_speech_is_a_turn_and_noise_and_silence_are_none(make: Callable[[], Voice]) -> None:
    with Synthesiser() as synthesiser:
        speech, rate = synthesiser.say("Hello there, what is the weather like today?", Speaker())
    speech = np.interp(np.arange(0, len(speech), rate / RATE), np.arange(len(speech)), speech).astype(np.float32)
    marks = turns(make(), in_noise(speech / np.abs(speech).max() / 2, 0.002), silence_duration_ms=700)
    assert [mark.begins for mark in marks] == [True, False]
    assert 1.0 < marks[0].place / RATE < 1.7
    for level in (0.0, 0.001, 0.05):
        assert turns(make(), in_noise(np.zeros(5 * RATE), level)) == []


@pytest.mark.parametrize("make", VOICES)
def test_any_cut_gives_the_same_turns(recordings: list[Any], make: Callable[[], Voice]) -> None:
    sound = in_noise(recordings[0], 0.001)
    assert turns(make(), sound, 100) == turns(make(), sound, 5000) == turns(make(), sound, len(sound))


class Said:
    """Says as probabilities what it is told."""

    def __init__(self, *runs: tuple[float, int]) -> None:
        self.probabilities = [probability for probability, count in runs for _ in range(count)]

    def __call__(self, windows: Any) -> Any:
        now, self.probabilities = self.probabilities[: len(windows)], self.probabilities[len(windows) :]
        return np.array(now)


def marks_of(*runs: tuple[float, int], longest: int = 1000, **settings: Any) -> list[tuple[bool, float]]:
    said = Said(*runs)
    detector = TurnDetector(said, ServerVad(type="server_vad", **settings), 0, longest * WINDOW)
    count = len(said.probabilities)
    return [(mark.begins, mark.place / WINDOW) for mark in detector.push(np.zeros(count * WINDOW, np.float32))]


def test_turns_follow_their_settings() -> None:
    short = {"prefix_padding_ms": 64, "silence_duration_ms": 128}
    assert marks_of((0, 10), (0.9, 10), (0, 20), **short) == [(True, 8), (False, 25)]
    assert marks_of((0, 10), (0.9, 2), (0, 20), **short) == []  # a click
    assert marks_of((0, 10), (0.6, 10), (0, 20), threshold=0.7, **short) == []
    assert marks_of((0, 10), (0.9, 5), (0.4, 10), (0.9, 5), (0, 9), **short) == [(True, 8), (False, 35)]
    assert marks_of((0, 1), (0.9, 10), (0, 9), prefix_padding_ms=5000, silence_duration_ms=128)[0] == (True, 0)
    assert marks_of((0.9, 30), longest=20, **short) == [(True, 0), (False, 20), (True, 20)]
    # The next turn does not begin before the end of the one before.
    assert marks_of((0.9, 5), (0, 5), (0.9, 5), prefix_padding_ms=960, silence_duration_ms=128)[2] == (True, 10)


def test_what_is_no_longer_needed_may_be_dropped() -> None:
    detector = TurnDetector(Said((0, 50), (0.9, 10), (0, 40)), ServerVad(type="server_vad"), 0, 10**9)
    (begin, end) = [mark for _ in range(100) for mark in detector.push(np.zeros(WINDOW, np.float32))]
    assert begin.begins and not end.begins
    assert detector.needed >= end.place
    detector = TurnDetector(Said((0, 50), (0.9, 10)), ServerVad(type="server_vad"), 0, 10**9)
    for _ in range(60):
        needed = detector.needed
        for mark in detector.push(np.zeros(WINDOW, np.float32)):
            assert mark.place >= needed


@needs_silero
def test_the_network_is_the_packages_own() -> None:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None and spec.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        script = torch.jit.load(str(Path(spec.origin).parent / "data" / "silero_vad.jit"))
    network = load_silero()
    assert network is not None
    # The script has other weights, in the same order.
    weights = [weight for name, weight in script.state_dict().items() if not name.startswith("_model_8k")]
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    sound = np.random.default_rng(0).standard_normal((6, WINDOW)).astype(np.float32) * 0.1
    voice = SileroVoice(network)
    given = np.concatenate((voice(sound[:1]), voice(sound[1:4]), voice(sound[4:])))
    with torch.no_grad():
        expected = [script(torch.from_numpy(window)[None], RATE).item() for window in sound]
    assert np.abs(given - expected).max() < 1e-5


@needs_silero
def test_the_package_is_read_and_not_imported() -> None:
    threads = torch.get_num_threads()
    assert load_silero() is not None
    assert "silero_vad" not in sys.modules  # it would set the threads of this process to one
    assert torch.get_num_threads() == threads
