"""Questions that are spoken, by many voices of eSpeak NG, at many speeds and in noise; some about a picture."""

from typing import Any

import numpy as np

from muomni.data.media.audio import Samples
from muomni.data.speech.espeak_client import Synthesiser, Voice
from muomni.data.speech.synthesis import encode, resample, trim_silence
from muomni.data.synthetic.draws import Draw
from muomni.data.synthetic.facts import facts
from muomni.data.synthetic.item import Item
from muomni.data.synthetic.persona import persona
from muomni.data.synthetic.scenes import ask, draw_scene, picture
from muomni.ops.audio_frames import SAMPLE_RATE

_LANGUAGES = ("en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-029")
_VARIANTS = (
    "", "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Annie", "Andy", "Alicia",
    "Denis", "Gene", "Jacky", "Lee", "Mario", "Michael", "Mike", "adam", "anika", "belinda", "benjamin", "boris",
    "caleb", "david", "ed", "grandma", "grandpa", "ian", "john", "linda", "max", "paul", "quincy", "rob", "shelby",
    "steph", "travis",
)  # fmt: skip
# Who speaks in the held-out part only.
HELD_OUT_VARIANTS = ("f4", "m6", "Andrea", "Alex", "edward", "victor", "zac", "steph2", "robert", "sandro")
_LONGEST_S = 12.0
# How loud noise is beside speech, in decibels.
_NOISE_DB = (8.0, 40.0)


def voice_of(draw: Draw) -> Voice:
    """Who asks."""
    if draw.part == "held_out":
        variant = draw.one(HELD_OUT_VARIANTS)
    else:
        variant = draw.one([name for name in _VARIANTS if name not in HELD_OUT_VARIANTS])
    speed, pitch = draw.random.randint(110, 190), draw.random.randint(30, 70)
    return Voice(draw.one(_LANGUAGES), variant, speed, pitch)


def spoken(draw: Draw, synthesiser: Synthesiser | None) -> Item:
    """A question that is heard: answered, or written down; about a picture in a third of all cases."""
    kind = draw.one(("question", "question", "talk", "scene", "scene", "transcribe"))
    if kind == "scene":
        things = draw_scene(draw)
        asked = ask(things, draw)
        parts = [{"type": "image", "image": picture(things, draw)}, _sound(asked.text, draw, synthesiser)]
        return Item(f"spoken/{asked.kind}", parts, asked.answer, asked.choices)
    item = (persona if kind == "talk" else facts)(draw)
    assert isinstance(item.question, str)
    if kind == "transcribe":
        prompt = draw.one(("What is said?", "What is said?", "Write down what you hear.", "Transcribe the recording."))
        heard = _sound(item.question, draw, synthesiser)
        return Item("spoken/transcribe", [heard, {"type": "text", "text": prompt}], item.question)
    heard = _sound(item.question, draw, synthesiser)
    return Item(f"spoken/{item.skill.partition('/')[2]}", [heard], item.answer, item.choices, item.also)


def _sound(text: str, draw: Draw, synthesiser: Synthesiser | None) -> dict[str, Any]:
    """A part with the text as FLAC of 16 kHz, and its words for the hearing loss."""
    if not draw.media or synthesiser is None:
        return {"type": "audio", "audio": b"", "transcript": text}
    samples, rate = synthesiser.say(text, voice_of(draw), max_seconds=_LONGEST_S)
    samples = resample(trim_silence(samples, rate), rate, SAMPLE_RATE)
    samples = samples / max(1e-3, float(np.abs(samples).max())) * draw.random.uniform(0.3, 0.9)
    if draw.chance(0.5):
        samples = _noisy(samples, draw)
    return {"type": "audio", "audio": encode(samples, SAMPLE_RATE, "flac"), "transcript": text}


def _noisy(samples: Samples, draw: Draw) -> Samples:
    """With white, pink or brown noise."""
    slope = draw.one((0.0, 0.5, 1.0))  # of the noise's amplitude over frequency
    noise = np.random.Generator(np.random.Philox(key=draw.random.getrandbits(64))).standard_normal(len(samples))
    spectrum = np.fft.rfft(noise) / np.maximum(1, np.arange(len(samples) // 2 + 1)) ** slope
    noise = np.fft.irfft(spectrum, len(samples))
    level = 10 ** (-draw.random.uniform(*_NOISE_DB) / 20)
    loudness = float(np.sqrt(np.mean(samples**2)) / max(1e-9, float(np.sqrt(np.mean(noise**2)))))
    return (samples + level * loudness * noise).clip(-1, 1).astype(np.float32)
