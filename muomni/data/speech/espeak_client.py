"""Speech from eSpeak NG, which runs as a process of its own (see `muomni.data.speech.espeak_worker`)."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from muomni.child_process import ChildEndedError, ChildProcess
from muomni.data.media.audio import Samples
from muomni.data.speech import espeak_worker
from muomni.errors import MuOmniError, UserError

SPEEDS = (80, 450)
PITCHES = (0, 99)
# One sentence takes some milliseconds; a process that says nothing for so long has died or hangs.
_ANSWER_SECONDS = 60.0
_REINSTALL = "install it anew: pip install --force-reinstall espeakng-loader"


class SynthesisError(MuOmniError):
    """The synthesiser could not say a text."""


@dataclass(frozen=True)
class Voice:
    """A voice of eSpeak NG.

    Attributes:
        name: the language, for example `en-us`.
        variant: a voice quality, for example `f3`; empty for the plain one.
        speed: words a minute, 80 to 450. The default is slow because slow speech is the best understood.
        pitch: 0 to 99.
    """

    name: str = "en-us"
    variant: str = ""
    speed: int = 130
    pitch: int = 50

    @classmethod
    def parse(cls, text: str) -> "Voice":
        """From `NAME[+VARIANT][:SPEED[:PITCH]]`, for example `en-us+f3:150`.

        Raises:
            UserError: it has another form, or speed or pitch are out of range.
        """
        name, *numbers = text.split(":")
        plain, _, variant = name.partition("+")
        if not plain or len(numbers) > 2 or not all(number.isascii() and number.isdecimal() for number in numbers):
            raise UserError(f"voice {text!r}: must be NAME[+VARIANT][:SPEED[:PITCH]], for example en-us+f3:150")
        given = [int(number) for number in numbers]
        for key, value, (low, high) in zip(("speed", "pitch"), given, (SPEEDS, PITCHES), strict=False):
            if not low <= value <= high:
                raise UserError(f"voice {text!r}: its {key} must be {low} to {high}, not {value}")
        return cls(plain, variant, *given)

    @property
    def speaker(self) -> str:
        """Who speaks, whatever the speed and pitch: name and variant."""
        return f"{self.name}+{self.variant}" if self.variant else self.name

    @property
    def language(self) -> str:
        """The language's short name, `en` for example."""
        return self.name.split("-")[0].lower()

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.speaker}:{self.speed}:{self.pitch}"


class Synthesiser:
    """eSpeak NG in its own process; use it with `with`. Not for several threads at once.

    The same texts and voices in the same order give a new Synthesiser's samples again, bit for bit.

    Args:
        voice: that speaks where `say` names none.
        fresh: what a text sounds like does not depend on the texts before it. Where processes cannot be forked
            (Windows) each text then has a process of its own, which takes longer.

    Raises:
        UserError: the package `espeakng-loader` is not installed.
        SynthesisError: eSpeak does not start.
    """

    def __init__(self, voice: Voice | None = None, *, fresh: bool = False) -> None:
        self._voice = voice or Voice()
        self._fresh = fresh
        self._child = self._start()

    def _start(self) -> ChildProcess:
        library, data = installed_library()
        command = [sys.executable, "-I", espeak_worker.__file__, library, data]
        try:
            return ChildProcess(command, stderr="dropped")
        except OSError as error:
            raise SynthesisError(f"the synthesiser does not start: {error}") from None

    def __enter__(self) -> "Synthesiser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._child.close()

    def say(self, text: str, voice: Voice | str | None = None, *, max_seconds: float = 60.0) -> tuple[Samples, int]:
        """Speaks a text.

        Args:
            text: in the voice's language.
            voice: None for the one given at the start.
            max_seconds: a text that takes longer is an error.

        Returns:
            (S,) float32, and the sample rate in Hz. Silence around the speech is as eSpeak makes it.

        Raises:
            UserError: there is no such voice.
            SynthesisError: naming the text and the reason: nothing to say, too long, or the process died.
        """
        chosen = Voice.parse(voice) if isinstance(voice, str) else voice or self._voice
        request = {
            "text": text,
            "voice": chosen.name,
            "variant": chosen.variant,
            "max_seconds": max_seconds,
            "speed": chosen.speed,
            "pitch": chosen.pitch,
            "fresh": self._fresh,
        }
        if self._fresh and not hasattr(os, "fork"):
            self.close()
            self._child = self._start()
            request["fresh"] = False
        answer, content = self._ask(request, f"to say {text[:80]!r}")
        if "error" in answer:
            kind = UserError if answer["error"].startswith("there is no") else SynthesisError
            raise kind(f"{text[:80]!r} with voice {chosen}: {answer['error']}")
        samples: Samples = np.frombuffer(content, np.int16).astype(np.float32)
        samples /= 32768
        if not np.any(samples):
            raise SynthesisError(f"{text[:80]!r} with voice {chosen}: nothing of it is spoken")
        return samples, int(answer["rate"])

    def voices(self) -> tuple[list[str], list[str]]:
        """The names of all voices, and of all variants."""
        answer, _ = self._ask({"list": True}, "for its voices")
        return answer["voices"], answer["variants"]

    def _ask(self, request: dict[str, Any], what: str) -> tuple[dict[str, Any], bytes]:
        """Sends a request; a process that does not answer in time is ended."""
        try:
            answer, content = self._child.ask_for_data(request, _ANSWER_SECONDS)
        except ChildEndedError as error:
            why = f"gave no answer within {_ANSWER_SECONDS:g} s" if error.timed_out else f"ended (code {error.code})"
            raise SynthesisError(f"the synthesiser was asked {what} and its process {why}; {_REINSTALL}") from None
        if "broken" in answer:
            raise UserError(f"the synthesiser cannot be used: {answer['broken']}; {_REINSTALL}")
        return answer, content


def installed_library() -> tuple[str, str]:
    """Where `espeakng-loader` keeps the library and its voices; nothing is loaded.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("espeakng_loader")
    if package is None or package.origin is None:
        raise UserError(
            "the synthesiser is not installed: pip install 'muomni[speech]' (the package espeakng-loader, which "
            "carries eSpeak NG and its voices)"
        )
    folder = Path(package.origin).parent
    names = {"win32": "espeak-ng.dll", "darwin": "libespeak-ng.dylib"}
    return str(folder / names.get(sys.platform, "libespeak-ng.so")), str(folder / "espeak-ng-data")
