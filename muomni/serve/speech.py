"""Speech out: texts become sound in the formats of OpenAI's clients, piece by piece while it is computed.

Everything is computed by the model thread, where listeners who are served at the same time share one speaker.
"""

import asyncio
import base64
import io
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from torch import Tensor

from muomni.errors import SpeechError
from muomni.infer.speech import TextSpeech
from muomni.infer.streaming import Chunk
from muomni.serve import sse
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError
from muomni.serve.schema import ChatRequest, SpeechRequest

# OpenAI's one rate of PCM.
RATE = 24_000
# Pieces of base64 that clients join and decode once: whole samples, and no padding inside.
_PIECE = 6
_EXPIRES_S = 3600
# Pieces of text and sound that wait for a client.
_AHEAD = 8


@dataclass(frozen=True)
class Format:
    """How sound is written.

    Attributes:
        media_type: of the body.
        codec: libsndfile's format and subtype; None for what is written sample by sample.
        header: of a stream of samples.
    """

    media_type: str
    codec: tuple[str, str] | None = None
    header: bytes = b""
    sample_rate: int = RATE

    def encoder(self, rate: int) -> "Encoder":
        """Turns sound of `rate` into bytes."""
        return SampleEncoder(rate, self.header) if self.codec is None else FileEncoder(rate, *self.codec)


# Sizes of a stream are not known before its end: the largest there are.
_WAV_HEADER = struct.pack(
    "<4sI4s4sIHHIIHH4sI", b"RIFF", 2**32 - 1, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 2**32 - 1
)
FORMATS = {
    "wav": Format("audio/wav", header=_WAV_HEADER),
    "pcm": Format("audio/pcm"),
    "mp3": Format("audio/mpeg", ("MP3", "MPEG_LAYER_III")),
    "opus": Format("audio/ogg", ("OGG", "OPUS")),
    "flac": Format("audio/flac", ("FLAC", "PCM_16")),
}


class Encoder(Protocol):
    """Sound, piece by piece, to bytes."""

    def push(self, sound: NDArray[np.float32], last: bool) -> bytes:
        """The bytes of (N,) samples of the model's rate, as far as they are complete."""


class SampleEncoder:
    """16 bit samples at 24 kHz, with a header before the first."""

    def __init__(self, rate: int, header: bytes = b"") -> None:
        self._resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        self._header = header

    def push(self, sound: NDArray[np.float32], last: bool) -> bytes:
        """See `Encoder`."""
        header, self._header = self._header, b""
        samples = self._resampler.resample_chunk(sound, last=last)
        return header + bytes((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())


class FileEncoder:
    """A whole file at the end."""

    def __init__(self, rate: int, form: str, subtype: str) -> None:
        self._rate, self._form, self._subtype = rate, form, subtype
        self._pieces: list[NDArray[np.float32]] = []

    def push(self, sound: NDArray[np.float32], last: bool) -> bytes:
        """See `Encoder`."""
        self._pieces.append(sound)
        if not last:
            return b""
        samples = soxr.resample(np.concatenate(self._pieces), self._rate, RATE)
        file = io.BytesIO()
        soundfile.write(file, samples.clip(-1, 1), RATE, format=self._form, subtype=self._subtype)
        return file.getvalue()


def format_of(name: str, param: str) -> Format:
    """The format of that name.

    Raises:
        ApiError: there is none, or this machine's libsndfile does not write it.
    """
    form = FORMATS.get("pcm" if name == "pcm16" else name)
    if form is None or (form.codec is not None and form.codec[1] not in soundfile.available_subtypes(form.codec[0])):
        message = f"{param} = {name[:20]!r}: there are {', '.join(FORMATS)}"
        raise ApiError(400, message, param=param, code="invalid_value")
    return form


def chat_format(asked: ChatRequest) -> Format:
    """Of a spoken reply.

    Raises:
        ApiError: there is none of that name, or it cannot be streamed.
    """
    name = asked.audio.format if asked.audio is not None else "pcm16" if asked.stream else "wav"
    form = format_of(name, "audio.format")
    if asked.stream and form.codec is not None:
        raise ApiError(400, "audio.format: streams are pcm16 or wav", param="audio.format", code="invalid_value")
    return form


async def spoken_pieces(
    engine: ServingEngine, speech: TextSpeech, texts: AsyncIterator[str], *, paced: bool = True
) -> AsyncIterator[Tensor]:
    """The sound of a text that comes in pieces.

    Args:
        engine: computes.
        speech: of the text.
        texts: the pieces.
        paced: somebody listens meanwhile; see `ServingEngine.turn`.

    Raises:
        SpeechError: it cannot be spoken.
    """
    began = time.monotonic()

    async def turns() -> AsyncIterator[Tensor]:
        while speech.can_work:
            sound = await engine.turn(speech, paced=paced)
            if sound is not None and len(sound):
                engine.metrics.sounded(speech, len(sound) / speech.sample_rate, began)
                yield sound

    try:
        async for text in texts:
            speech.push(text)
            async for sound in turns():
                yield sound
        speech.finish()
        while not speech.ended:
            async for sound in turns():
                yield sound
    finally:
        engine.metrics.spoken(speech)


async def first_of(sounds: AsyncIterator[Tensor]) -> Tensor:
    """The first sound.

    Raises:
        ApiError: the text cannot be spoken.
    """
    try:
        return await anext(sounds)
    except SpeechError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None


async def encoded(
    first: Tensor, sounds: AsyncIterator[Tensor], encoder: Encoder, *, as_events: bool
) -> AsyncIterator[bytes]:
    """The body of a speech.

    Args:
        first: sound.
        sounds: what follows.
        encoder: to bytes.
        as_events: as events that hold the bytes in base64, in the place of the bytes.
    """
    told: Callable[[bytes], bytes] = _speech_event if as_events else bytes
    held, frames = first, 0
    async for sound in sounds:
        if data := encoder.push(held.numpy(), last=False):
            yield told(data)
        frames += len(held)
        held = sound
    # A file is written in one go, which would hold up the event loop.
    yield told(await asyncio.to_thread(partial(encoder.push, held.numpy(), last=True)))
    if as_events:
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        yield sse.event({"type": "speech.audio.done", "usage": usage})


def _speech_event(data: bytes) -> bytes:
    return sse.event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


async def text_and_format(asked: SpeechRequest) -> tuple[AsyncIterator[str], Format]:
    """What a request wants spoken, and how it is written.

    Raises:
        ApiError: no such format.
    """

    async def text() -> AsyncIterator[str]:
        yield asked.input

    return text(), format_of(asked.response_format, "response_format")


class Spoken:
    """Speaks the reply of a chat.

    Args:
        engine: computes.
        speech: of the reply.
        form: how it is written.
    """

    def __init__(self, engine: ServingEngine, speech: TextSpeech, form: Format) -> None:
        self._engine, self._speech = engine, speech
        self._encoder = form.encoder(speech.sample_rate)
        self._data = b""

    async def speak(self, text: str) -> None:
        """All of a reply that is known."""

        async def known() -> AsyncIterator[str]:
            yield text

        sounds = self._or_silence(spoken_pieces(self._engine, self._speech, known(), paced=False))
        pieces = [np.empty(0, np.float32), *[piece.numpy() async for piece in sounds]]
        self._data = await asyncio.to_thread(self._encoder.push, np.concatenate(pieces), True)

    def as_part(self, name: str, transcript: str) -> dict[str, Any]:
        """The `audio` of a message."""
        data = base64.b64encode(self._data).decode()
        return {"id": name, "data": data, "expires_at": int(time.time()) + _EXPIRES_S, "transcript": transcript}

    async def deltas(self, chunks: AsyncIterator[Chunk], name: str) -> AsyncGenerator[dict[str, Any]]:
        """The `delta.audio` of a stream: text and sound as they come; name and end of life once.

        Raises:
            what the text or its speech raises.
        """
        # Bounded: speech of which the client takes nothing is not computed on.
        ready: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(_AHEAD)
        texts: asyncio.Queue[str | None] = asyncio.Queue()
        sounds = self._or_silence(spoken_pieces(self._engine, self._speech, _until_none(texts)))
        tasks = [
            asyncio.ensure_future(_feed(ready, "text", _noted(chunks, texts))),
            asyncio.ensure_future(_feed(ready, "sound", sounds)),
        ]
        try:
            yield {"id": name, "expires_at": int(time.time()) + _EXPIRES_S, "transcript": ""}
            kind = ""
            while kind != "sound end":
                kind, value = await ready.get()
                if kind == "error":
                    raise value
                if kind == "text":
                    yield {"transcript": value}
                elif kind.startswith("sound") and (data := self._ready(value)):
                    yield {"data": base64.b64encode(data).decode()}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _or_silence(self, sounds: AsyncIterator[Tensor]) -> AsyncIterator[Tensor]:
        """The sounds; none of a reply without a letter, which is a reply all the same."""
        try:
            async for sound in sounds:
                yield sound
        except SpeechError:
            if self._speech.timing.sentences:
                raise

    def _ready(self, sound: Tensor | None) -> bytes:
        """Bytes of sound that are whole pieces; with None, the end, all that are left."""
        last = sound is None
        self._data += self._encoder.push(np.empty(0, np.float32) if sound is None else sound.numpy(), last)
        whole = len(self._data) if last else len(self._data) // _PIECE * _PIECE
        data, self._data = self._data[:whole], self._data[whole:]
        return data


async def _feed(ready: "asyncio.Queue[tuple[str, Any]]", kind: str, values: AsyncIterator[Any]) -> None:
    """Puts values into a queue, then their end or the error."""
    try:
        async for value in values:
            await ready.put((kind, value))
        await ready.put((f"{kind} end", None))
    except Exception as error:  # noqa: BLE001 - raised by who reads the queue
        await ready.put(("error", error))


async def _noted(chunks: AsyncIterator[Chunk], texts: "asyncio.Queue[str | None]") -> AsyncIterator[str]:
    """The texts of a reply, each of them put into a queue as well, then None."""
    try:
        async for chunk in chunks:
            if chunk.text:
                texts.put_nowait(chunk.text)
                yield chunk.text
    finally:
        texts.put_nowait(None)


async def _until_none(queue: "asyncio.Queue[str | None]") -> AsyncIterator[str]:
    """The texts in a queue, up to None; those that are there already together."""
    ended = False
    while not ended and (text := await queue.get()) is not None:
        while not ended and not queue.empty():
            more = queue.get_nowait()
            ended, text = more is None, text + (more or "")
        yield text
