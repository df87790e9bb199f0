"""Transcriptions: a form with a sound becomes text, whole or as it is written down."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import python_multipart  # noqa: F401 - what Starlette reads forms with; missing, it is told at the start
from starlette.datastructures import UploadFile
from starlette.requests import Request

from muomni.data.media.audio import Sound
from muomni.data.media.media_ref import MediaContent
from muomni.errors import MediaError, PromptError, SettingError
from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.preprocess import EngineInput
from muomni.infer.transcription import JoinedText, Piece, Transcriber
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError
from muomni.serve.metrics import Metrics
from muomni.serve.schema import TranscriptionRequest, validated

# Of a form, besides its file.
_MOST_FIELDS, _FIELD_BYTES = 32, 64 << 10
# Pieces of one sound that are under way at a time.
_SIDE_BY_SIDE = 4


async def read_form(request: Request, max_upload: int) -> TranscriptionRequest:
    """A request from its form; `file` is the one file in it.

    Args:
        request: whose bytes are counted while they are read.
        max_upload: bytes of the file at most.

    Raises:
        ApiError: a field is wrong, missing, or there twice, or the file is too large.
        HTTPException: it is no form, or has too many or too large fields.
    """
    fields: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile) != (key == "file"):
                wrong = "must be a file" if key == "file" else "must not be a file"
                raise ApiError(400, f"{key[:80]}: {wrong}", param=key[:80], code="invalid_value")
            if key.endswith("[]"):
                fields.setdefault(key.removesuffix("[]"), []).append(value)
            elif key in fields:
                raise ApiError(400, f"{key[:80]}: is there twice", param=key[:80], code="invalid_value")
            elif isinstance(value, UploadFile):
                if (value.size or 0) > max_upload:
                    message = f"file: is larger than {max_upload >> 20} MiB"
                    raise ApiError(413, message, param="file", code="request_too_large")
                fields[key] = MediaContent(value.filename or "file", await value.read())
            elif value:  # forms say with an empty text that nothing was chosen
                fields[key] = value
    return validated(TranscriptionRequest, fields)


class Transcription:
    """What is said in one sound; `close` ends it, also before it has come to its end.

    Args:
        engine: answers.
        metrics: measure the streams.
    """

    def __init__(self, engine: ServingEngine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._left: deque[Piece] = deque()
        self._begun: deque[asyncio.Task[tuple[EngineInput, AsyncTextStream, float]]] = deque()
        self._open: list[AsyncTextStream] = []
        self._text = JoinedText()
        self._input = self._audio = self._output = 0

    async def begin(self, sound: Sound, max_seconds: float, prompt: str | None, temperature: float | None) -> None:
        """Decodes the sound and submits its beginning.

        Args:
            sound: see `load_audio`.
            max_seconds: longest sound.
            prompt: of subject or spellings, or None.
            temperature: of sampling; None is 0.

        Raises:
            ApiError: it cannot be read or is too long, or a setting is not allowed.
        """
        settings = {} if temperature is None else {"temperature": temperature}
        try:
            pieces = await self._engine.in_pool(partial(self._pieces, sound, max_seconds, prompt, settings))
            self._left.extend(pieces)
            self._fill()
            await self._begun[0]
        except MediaError as error:
            raise ApiError(400, str(error), param="file", code="invalid_value") from None
        except SettingError:
            raise
        except PromptError as error:
            raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None

    def _pieces(self, sound: Sound, max_seconds: float, prompt: str | None, settings: dict[str, Any]) -> list[Piece]:
        transcriber = Transcriber(self._engine.model, self._engine.tokenizer, prompt, **settings)
        return transcriber.pieces(sound, max_seconds)

    def _fill(self) -> None:
        while self._left and len(self._begun) < _SIDE_BY_SIDE:
            self._begun.append(asyncio.ensure_future(self._submit(self._left.popleft())))

    async def _submit(self, piece: Piece) -> tuple[EngineInput, AsyncTextStream, float]:
        began = time.monotonic()
        prepared = await self._engine.prepare(piece.prompt, piece.params, raw=False, alone=False)
        stream = self._engine.stream(prepared)
        self._open.append(stream)
        return prepared, stream, began

    async def texts(self) -> AsyncIterator[str]:
        """The text in pieces that are joined as they are.

        Raises:
            what a stream raises.
        """
        while self._begun:
            prepared, stream, began = await self._begun.popleft()
            self._fill()
            async for chunk in self._metrics.measured(stream, began):
                if new := self._text.push(chunk.text):
                    yield new
            self._text.end_piece()
            self._input += len(prepared.ids)
            self._audio += self._engine.media_tokens(prepared)["audio_tokens"]
            self._output += len(stream.request.tokens)

    async def whole(self) -> dict[str, Any]:
        """What a client gets that does not stream.

        Raises:
            what a stream raises.
        """
        async for _ in self.texts():
            pass
        return self._result()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream.

        Raises:
            what a stream raises.
        """
        async for text in self.texts():
            yield {"type": "transcript.text.delta", "delta": text}
        yield {"type": "transcript.text.done", **self._result()}

    def _result(self) -> dict[str, Any]:
        details = {"audio_tokens": self._audio, "text_tokens": self._input - self._audio}
        usage = {"type": "tokens", "input_tokens": self._input, "input_token_details": details}
        usage |= {"output_tokens": self._output, "total_tokens": self._input + self._output}
        return {"text": self._text.text, "usage": usage}

    def close(self) -> None:
        """Ends what is under way."""
        for task in self._begun:
            if not task.cancel() and not task.cancelled():
                task.exception()  # told already, with that of an earlier piece
        for stream in self._open:
            stream.close()
