"""Speech as files, and played while it comes."""

import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from muomni.data.audio import Samples
from muomni.errors import UserError

FORMATS = ("wav", "flac")


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


def write_sound(path: Path, samples: Samples, rate: int) -> None:
    """Writes (S,) float32 as WAV or FLAC of 16 bit, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from muomni.data.speech import encode
    from muomni.files import atomic_file

    content = encode(samples, rate, path.suffix.lower().removeprefix("."))
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def numbered(path: Path, number: int) -> Path:
    """`out.wav` to `out-2.wav`."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


class Player:
    """Plays speech as it comes, on the machine's default device; use it with `with`.

    Raises:
        UserError: `sounddevice` or its library is not installed, or there is no device.
    """

    def __init__(self) -> None:
        self._devices = _sounddevice()
        self._stack = ExitStack()
        self._stream: Any = None
        self._rate = 0
        try:
            self._devices.query_devices(kind="output")
        except (self._devices.PortAudioError, ValueError) as error:
            raise UserError(f"speech cannot be played here: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def play(self, samples: Samples, rate: int) -> None:
        """Plays (S,) float32 behind what was given before; waits while there is much to play already.

        Raises:
            UserError: the device does not take it.
        """
        try:
            if rate != self._rate:
                self._stack.close()
                self._stream = self._devices.OutputStream(samplerate=rate, channels=1, dtype="float32")
                self._stack.enter_context(self._stream)
                self._rate = rate
            self._stream.write(np.ascontiguousarray(np.clip(samples, -1, 1))[:, None])
        except self._devices.PortAudioError as error:
            raise UserError(f"speech cannot be played here: {error}") from None


def _sounddevice() -> Any:
    hint = "pip install 'muomni[play]' (the package sounddevice; on Linux also the system's PortAudio, libportaudio2)"
    if importlib.util.find_spec("sounddevice") is None:
        raise UserError(f"what plays speech is not installed: {hint}")
    try:
        import sounddevice
    except OSError as error:  # its library is not there
        raise UserError(f"what plays speech does not load ({error}): {hint}") from None
    return sounddevice
