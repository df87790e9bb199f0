"""Pairs of text and speech in any number, spoken by a synthesiser.

How it works. The sentences are dealt to shards in their order. A shard is made by a synthesiser process of its own
and depends on its sentences and the settings alone: a folder comes out the same, byte for byte, whatever the number
of workers, and however often it was stopped in between. A shard is two files, the archive `shard-00000.zip` with the
sounds and `shard-00000.jsonl` with their rows; the second one, written last, says that both are whole. At the end
`manifest.jsonl` holds all rows.
"""

import errno
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muomni.data.media.audio import Samples
from muomni.data.speech.espeak_client import PITCHES, SPEEDS, Synthesiser, Voice
from muomni.data.speech.manifest import MANIFEST
from muomni.data.speech.sentences import wording
from muomni.errors import DataError
from muomni.files import atomic_file, json_line, remove_partial, text_lines, write_atomic
from muomni.ops.audio_frames import SAMPLE_RATE

SHARD_CLIPS = 250
# Speech of one sentence beyond this is a fault of the synthesiser or of the sentence.
MAX_SECONDS = 60.0
# What stays around the speech, and what counts as silence, relative to the loudest sample (−50 dB).
_MARGIN_SECONDS = 0.1
_SILENCE = 10 ** (-50 / 20)
_SETTINGS = "speech.json"
# A rough size on disk for the check of free space: words a second when one speaks, and how FLAC packs speech.
_WORDS_A_SECOND, _PACKED = 2.5, {"flac": 0.6, "wav": 1.0}


@dataclass(frozen=True)
class SpeechSettings:
    """How speech is made.

    Attributes:
        voices: each sentence gets one of them, drawn evenly.
        speed_spread: a sentence's speed is its voice's times 1 ± this at most.
        pitch_spread: its pitch is its voice's ± this at most.
        sample_rate: of the files, in Hz.
        format: of the files, 16 bit.
        seed: of voices, speeds and pitches; a sentence's draw depends on the seed and its wording alone.
    """

    voices: tuple[Voice, ...] = (Voice(),)
    speed_spread: float = 0.0
    pitch_spread: int = 0
    sample_rate: int = SAMPLE_RATE
    format: Literal["flac", "wav"] = "flac"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.voices:
            raise DataError("speech needs at least one voice")
        if not 0 <= self.speed_spread <= 0.5 or not 0 <= self.pitch_spread <= 50:
            raise DataError(
                f"a spread of {self.speed_spread:g} in speed and {self.pitch_spread} in pitch: at most 0.5 and 50"
            )
        if not 8_000 <= self.sample_rate <= 48_000:
            raise DataError(f"a sample rate of {self.sample_rate} Hz: must be 8,000 to 48,000")

    def voice_for(self, sentence: str) -> Voice:
        """The voice, speed and pitch of a sentence."""
        draw = random.Random(f"{self.seed} {wording(sentence)}")
        voice = draw.choice(self.voices)
        speed = round(voice.speed * draw.uniform(1 - self.speed_spread, 1 + self.speed_spread))
        pitch = round(voice.pitch + draw.uniform(-self.pitch_spread, self.pitch_spread))
        (slowest, fastest), (lowest, highest) = SPEEDS, PITCHES
        return Voice(voice.name, voice.variant, min(max(speed, slowest), fastest), min(max(pitch, lowest), highest))


@dataclass(frozen=True)
class SpeechMade:
    """What was made: rows of the manifest, seconds of speech, bytes on disk, and shards that were there before."""

    manifest: Path
    clips: int
    seconds: float
    size: int
    shards: int
    found: int


def make_speech(
    sentences: Sequence[str],
    out: Path,
    settings: SpeechSettings,
    *,
    workers: int = 1,
    report: Callable[[int], None] = lambda _: None,
) -> SpeechMade:
    """Speaks sentences into a folder; one that was begun with the same sentences and settings is completed.

    Each row of the manifest has `audio`, `archive`, `text`, `speaker`, `language`, `sample_rate` and `duration` in
    seconds.

    Args:
        sentences: without repeats.
        out: the folder.
        settings: how they are spoken.
        workers: synthesiser processes at a time.
        report: called with the number of clips done since the last call.

    Raises:
        DataError: there are no sentences, the folder holds something else, or it cannot be written (disk full).
        UserError: the synthesiser is not installed, or there is no such voice.
        SynthesisError: a sentence cannot be said.
    """
    if not sentences:
        raise DataError("there are no sentences to speak")
    with _disk(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out)
        _claim(out, sentences, settings)
        _check_space(out, sentences, settings)
    with Synthesiser() as synthesiser:  # a voice that does not exist is told before any work is done
        for voice in settings.voices:
            synthesiser.say("one", voice)
    shards = [sentences[first : first + SHARD_CLIPS] for first in range(0, len(sentences), SHARD_CLIPS)]
    todo = []
    for number, shard in enumerate(shards):
        if _rows_path(out, number).exists() and _archive_path(out, number).exists():
            report(len(shard))
        else:
            todo.append(number)
    with _disk(out):
        _run(todo, workers, lambda number: _make_shard(shards[number], out, number, settings, report))
        return _finish(out, len(shards), len(shards) - len(todo))


def _run(todo: Sequence[int], workers: int, make: Callable[[int], None]) -> None:
    """Makes shards in threads, which wait for their processes; after an error or Ctrl-C no new one is begun."""
    with ThreadPoolExecutor(workers) as pool:
        left = iter(todo)
        running: set[Future[None]] = {pool.submit(make, number) for number in islice(left, workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                running |= {pool.submit(make, number) for number in islice(left, 1)}


def _make_shard(
    sentences: Sequence[str], out: Path, number: int, settings: SpeechSettings, report: Callable[[int], None]
) -> None:
    target = _archive_path(out, number)
    rows = []
    with atomic_file(target) as partial, zipfile.ZipFile(partial, "w") as archive, Synthesiser() as synthesiser:
        for place, sentence in enumerate(sentences):
            voice = settings.voice_for(sentence)
            samples, rate = synthesiser.say(sentence, voice, max_seconds=MAX_SECONDS)
            samples = resample(trim_silence(samples, rate), rate, settings.sample_rate)
            name = f"{number * SHARD_CLIPS + place:07d}.{settings.format}"
            # No time of day in the archive: the same speech is the same file.
            archive.writestr(zipfile.ZipInfo(name), encode(samples, settings.sample_rate, settings.format))
            rows.append(
                {
                    "audio": name,
                    "archive": target.name,
                    "text": sentence,
                    "speaker": voice.speaker,
                    "language": voice.language,
                    "sample_rate": settings.sample_rate,
                    "duration": round(len(samples) / settings.sample_rate, 3),
                }
            )
            report(1)
    write_atomic(_rows_path(out, number), b"".join(map(json_line, rows)).decode())


def _finish(out: Path, shards: int, found: int) -> SpeechMade:
    """Joins the rows of all shards; their order is that of the sentences."""
    clips, seconds = 0, 0.0
    with atomic_file(out / MANIFEST) as partial, partial.open("wb") as file:
        for number in range(shards):
            rows = _rows_path(out, number).read_bytes()
            file.write(rows)
            durations = [json.loads(line)["duration"] for line in text_lines(rows.decode())]
            clips, seconds = clips + len(durations), seconds + sum(durations)
    size = sum(_archive_path(out, number).stat().st_size for number in range(shards))
    return SpeechMade(out / MANIFEST, clips, seconds, size, shards, found)


def _rows_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.jsonl"


def _archive_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.zip"


def _claim(out: Path, sentences: Sequence[str], settings: SpeechSettings) -> None:
    """Writes down what the folder is for, or checks that it is for this."""
    digest = blake2b("\n".join(sentences).encode(), digest_size=16).hexdigest()
    wanted: dict[str, Any] = {
        "sentences": len(sentences),
        "sentences_hash": digest,
        "shard_clips": SHARD_CLIPS,
        **asdict(settings),
        "voices": [str(voice) for voice in settings.voices],
    }
    path = out / _SETTINGS
    if not path.exists():
        if strangers := [found.name for found in out.iterdir()]:
            raise DataError(f"{out}: is not empty (it holds {min(strangers)}); give a new folder")
        write_atomic(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}; delete {out} or give another folder") from None
    differing = [key for key in wanted if wanted[key] != recorded.get(key)]
    if differing:
        names = ", ".join(f"{key} was {recorded.get(key)}, now {wanted[key]}" for key in differing)
        raise DataError(f"{out}: holds speech made otherwise ({names}); give another folder, or delete this one")


def _check_space(out: Path, sentences: Sequence[str], settings: SpeechSettings) -> None:
    words = sum(len(sentence.split()) for sentence in sentences)
    needed = words / _WORDS_A_SECOND * settings.sample_rate * 2 * _PACKED[settings.format]
    written = sum(path.stat().st_size for path in out.glob("shard-*.zip"))
    free = shutil.disk_usage(out).free
    if needed - written > free:
        raise DataError(
            f"{out}: about {needed / 1e6:,.0f} MB are needed for {len(sentences):,} sentences, and "
            f"{free / 1e6:,.0f} MB are free; ask for fewer (--count) or give a folder elsewhere"
        )


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Errors of the file system as ours."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DataError(
            f"{out}: cannot be written: {reason}; what was done is kept, and the same command goes on from there"
        ) from None


def trim_silence(samples: Samples, rate: int, margin: float = _MARGIN_SECONDS) -> Samples:
    """Cuts silence at both ends off, but for `margin` seconds of it; (S,) to (S',), at least one sample."""
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max(initial=0.0))
    if not len(loud):
        return samples
    around = round(margin * rate)
    return samples[max(0, loud[0] - around) : loud[-1] + 1 + around]


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """(S,) at `rate` to (S',) at `wanted` Hz."""
    import soxr

    if rate == wanted:
        return samples
    result: Samples = soxr.resample(samples, rate, wanted, quality="HQ").astype(np.float32, copy=False)
    return result


def encode(samples: Samples, rate: int, form: str) -> bytes:
    """The bytes of a FLAC or WAV file of 16 bit; what is beyond ±1 is cut."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format=form.upper(), subtype="PCM_16")
    return file.getvalue()
