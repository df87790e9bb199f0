"""Speech in files, and played while it comes."""

import contextlib
import importlib.util
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from muomni.cli.common.output import writing
from muomni.errors import SpeechError, UserError

if TYPE_CHECKING:
    from muomni.data.media.audio import Samples
    from muomni.infer import Chunk

FORMATS = ("wav", "flac")
# What is given to the device at one time: it stops within so many seconds.
_STEP_S = 0.1


def check_target(path: Path) -> None:
    """Refuses a file that speech cannot be written to, before anything is computed.

    Raises:
        UserError: another ending than .wav or .flac, or a folder that is missing or not writable.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise UserError(f"{path}: speech is written as .wav or .flac")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def write_sound(path: Path, samples: "Samples", rate: int) -> None:
    """Writes (S,) float32 as WAV or FLAC of 16 bit, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from muomni.data.speech.synthesis import encode
    from muomni.files import atomic_file

    content = encode(samples, rate, path.suffix.lower().removeprefix("."))
    with writing(path), atomic_file(path) as partial:
        partial.write_bytes(content)


class Player:
    """Plays speech as it comes, on the machine's default device, while its caller goes on; use it with `with`.

    Leaving the block waits until all has been played, or after an error stops at once.

    Raises:
        UserError: `sounddevice` or its library is not installed, or there is no device.
    """

    def __init__(self) -> None:
        self._devices = _sounddevice()
        try:
            self._devices.query_devices(kind="output")
        except (self._devices.PortAudioError, ValueError) as error:
            raise UserError(f"speech cannot be played here: {error}") from None
        self._waiting: queue.SimpleQueue[tuple[Samples, int] | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="muomni-play", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.stop()
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._check()

    def play(self, samples: "Samples", rate: int) -> None:
        """Plays (S,) float32 behind what was given before.

        Raises:
            UserError: the device did not take what was given before.
        """
        self._check()
        step = max(1, round(rate * _STEP_S))
        for begin in range(0, len(samples), step):
            self._waiting.put((samples[begin : begin + step], rate))

    def stop(self) -> None:
        """Forgets what has not been played yet."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()

    def _check(self) -> None:
        if self._error is not None:
            raise UserError(f"speech cannot be played here: {self._error}")

    def _run(self) -> None:
        """The thread's work."""
        stream, opened_at = None, 0
        with contextlib.ExitStack() as stack:
            while (given := self._waiting.get()) is not None:
                samples, rate = given
                if self._error is not None:
                    continue
                try:
                    if stream is None or rate != opened_at:
                        stack.close()
                        opened = self._devices.OutputStream(samplerate=rate, channels=1, dtype="float32")
                        stream, opened_at = stack.enter_context(opened), rate
                    stream.write(np.ascontiguousarray(np.clip(samples, -1, 1))[:, None])
                except self._devices.PortAudioError as error:
                    self._error = error


def _sounddevice() -> Any:
    hint = "pip install 'muomni[play]' (the package sounddevice; on Linux also the system's PortAudio, libportaudio2)"
    if importlib.util.find_spec("sounddevice") is None:
        raise UserError(f"what plays speech is not installed: {hint}")
    try:
        import sounddevice
    except OSError as error:  # its library is not there
        raise UserError(f"what plays speech does not load ({error}): {hint}") from None
    return sounddevice


class SpokenReplies:
    """Takes in the chunks of replies and writes a file for each reply; use it with `with`.

    Args:
        target: the file; with several replies `out-1.wav`, `out-2.wav`, ...
        one: there is one reply alone.
        played: somebody is there: play the speech as it comes, where that can be done.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, target: Path, *, one: bool, played: bool) -> None:
        check_target(target)
        self._target, self._one = target, one
        self._parts: list[Samples] = []
        self._rate = self._count = 0
        self._player: Player | None = None
        self._silent = ""
        if played:
            try:
                self._player = Player()
            except UserError as error:  # told with the first reply, and the file is written all the same
                self._silent = f" (not played: {error})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._player is not None:
            self._player.__exit__(kind, error, at)

    def hear(self, chunk: "Chunk") -> None:
        """Takes a chunk's sound, if it has any."""
        if chunk.audio is None or chunk.sample_rate is None or not len(chunk.audio):
            return
        samples = chunk.audio.numpy()
        self._parts.append(samples)
        self._rate = chunk.sample_rate
        if self._player is not None:
            self._player.play(samples, self._rate)

    def stop(self) -> None:
        """Forgets what was heard of a reply, and stops playing it."""
        self._parts.clear()
        if self._player is not None:
            self._player.stop()

    def finish(self) -> str:
        """Writes what was heard of a reply, and says so in words.

        Raises:
            SpeechError: nothing was heard.
            UserError: the file cannot be written.
        """
        if not self._parts:
            raise SpeechError("nothing of the reply was spoken, so no sound was written")
        self._count += 1
        path = self._target if self._one else self._target.with_stem(f"{self._target.stem}-{self._count}")
        samples = np.concatenate(self._parts)
        self._parts.clear()
        write_sound(path, samples, self._rate)
        result = f"{len(samples) / self._rate:.1f} s of speech in {path}{self._silent}"
        self._silent = ""
        return result
