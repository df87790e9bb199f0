"""The synthesiser eSpeak NG as a program of its own: requests as JSON lines on stdin, speech on stdout.

eSpeak NG is under the GNU General Public License, version 3 or later, and μOmni under the Apache License, so the
library is never loaded into μOmni's process, nor shipped with it: this file is run by
`muomni.data.speech.espeak_client` as

    python -I espeak_worker.py LIBRARY DATA

with the library and voices that the package `espeakng-loader` installs. It uses the standard library alone.

A request is `{"text", "voice", "variant", "speed", "pitch", "max_seconds", "fresh"}`; the answer is a JSON line with
`data` and `rate`, then so many bytes of 16-bit samples, or a JSON line with `error`. The request
`{"list": true}` is answered by one line with `voices` and `variants`. Where the library or its voices cannot be used,
the first answer is a line with `broken`, and the process ends.

The library seeds its noise with the second in which it starts; here each sentence begins with the same seed instead.
What a sentence sounds like still depends on those before it, but a new process always gives the same samples for
the same requests in the same order. With `fresh` a sentence is said by a fork that has said none before: it sounds
the same whatever came before it.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

# Numbers of eSpeak's API (speak_lib.h): answer synchronously, the text is UTF-8, which parameter is which.
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_SEED = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Voice(ctypes.Structure):
    """The beginning of `espeak_VOICE`; `languages` begins with a byte of priority."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p))


class Library:
    """The loaded library.

    Raises:
        RuntimeError: it does not load, or its voices are not there.
    """

    def __init__(self, path: str, data: str) -> None:
        if not Path(path).is_file():
            raise RuntimeError(f"the library {path} is missing")
        try:
            self._library: Any = ctypes.CDLL(path)
        except OSError as error:
            raise RuntimeError(f"the library {path} does not load: {error}") from None
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self._library.espeak_Synth.argtypes = (
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        )
        self._parts: list[bytes] = []
        self._left = 0
        # Kept for as long as the library may call it.
        self._callback = _CALLBACK(self._receive)
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT))
        variants = Path(data, "voices", "!v")
        if self.rate <= 0 or not variants.is_dir() or not (voices := self._list_voices()):
            raise RuntimeError(f"its voices in {data} are missing or broken")
        self._library.espeak_SetSynthCallback(self._callback)
        self.variants = sorted(file.name for file in variants.iterdir())
        self.voices = voices

    def _list_voices(self) -> list[str]:
        names: list[str] = []
        voices = self._library.espeak_ListVoices(None)
        while voices[len(names)]:
            names.append(voices[len(names)].contents.languages[1:].decode())
        return sorted(set(names))

    def say(self, request: dict[str, Any]) -> bytes:
        """16-bit samples.

        Raises:
            ValueError: no such voice, or it does not come to an end.
        """
        voice, variant = request["voice"], request["variant"]
        # eSpeak would take another voice, or none of the variant's sound, without a word.
        if voice not in self.voices:
            raise ValueError(f"there is no voice {voice!r}; English ones: {_some(self.voices, 'en')}")
        if variant and variant not in self.variants:
            raise ValueError(f"there is no variant {variant!r}; there are: {', '.join(self.variants)}")
        name = f"{voice}+{variant}" if variant else voice
        if self._library.espeak_SetVoiceByName(name.encode()):
            raise ValueError(f"the voice {name!r} does not load")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        self._library.espeak_SetParameter(_RATE, request["speed"], 0)
        self._library.espeak_SetParameter(_PITCH, request["pitch"], 0)
        self._parts.clear()
        self._left = int(request["max_seconds"] * self.rate)
        text = request["text"].replace("\0", "").encode()
        if self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None):
            raise ValueError("eSpeak could not say it")
        if self._left < 0:
            raise ValueError(f"it would last more than {request['max_seconds']:g} s")
        return b"".join(self._parts)

    def say_fresh(self, request: dict[str, Any]) -> bytes:
        """As `say`, in a fork: this process stays as if it had said nothing.

        Raises:
            ValueError: see `say`.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                said = b"+" + self.say(request)
            except ValueError as error:
                said = b"-" + str(error).encode()
            with open(writer, "wb") as pipe:
                pipe.write(said)
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        if said[:1] != b"+":
            raise ValueError(said[1:].decode() or "eSpeak ended while it said it")
        return said[1:]

    def _receive(self, samples: int | None, count: int, _: int | None) -> int:
        """Takes a piece of speech; 1 stops."""
        if samples and count:
            self._left -= count
            if self._left < 0:
                return 1
            self._parts.append(ctypes.string_at(samples, 2 * count))
        return 0


def _some(names: list[str], start: str) -> str:
    return ", ".join(name for name in names if name.startswith(start))


def serve(library: Library, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end."""
    for line in requests:
        request = json.loads(line)
        samples = b""
        answer: dict[str, Any]
        if request.get("list"):
            answer = {"voices": library.voices, "variants": library.variants}
        else:
            try:
                samples = library.say_fresh(request) if request.get("fresh") else library.say(request)
                answer = {"data": len(samples), "rate": library.rate}
            except ValueError as error:
                answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n" + samples)
        answers.flush()


if __name__ == "__main__":
    try:
        loaded = Library(sys.argv[1], sys.argv[2])
    except RuntimeError as problem:
        sys.stdin.buffer.readline()
        print(json.dumps({"broken": str(problem)}), flush=True)
    else:
        serve(loaded, sys.stdin.buffer, sys.stdout.buffer)
