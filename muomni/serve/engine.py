"""What answers: one engine with one model thread, places that are counted, and media that are decoded beside it."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from muomni.api.model import MuOmni
from muomni.errors import PromptError, SpeechError
from muomni.infer.async_streaming import AsyncTextStream, Pulse
from muomni.infer.engine.engine import make_engine
from muomni.infer.preprocess import EngineInput, Reading, checked_tokenizer, prepare
from muomni.infer.sampling import SamplingParams
from muomni.infer.speculative.drafts import check_guessable
from muomni.infer.speech import AHEAD_S, SpeechSettings, TextSpeech
from muomni.infer.speech.speaker import codec_of
from muomni.serve.errors import ApiError, overloaded
from muomni.serve.metrics import Metrics
from muomni.serve.settings import ServerSettings
from muomni.serve.turns import SpeechTurns

T = TypeVar("T")
State = Literal["idle", "ok", "stalled", "stopping", "dead"]
# How often it is looked whether the model thread has taken a step.
_WATCH_S = 0.5
# Characters and messages of prompts that are read in the event loop.
_SHORT, _SHORT_MESSAGES = 2000, 16
# How often a speech that is ahead looks whether there is still text to compute.
_LOOK_S = 0.1


class ServingEngine:
    """Answers the requests of a server.

    Args:
        model: in evaluation mode from now on; nothing else may use it.
        settings: of the server.

    Attributes:
        tokenizer: of the model.
        context: tokens of the longest request, prompt and reply.
        running: requests that have a place.
        speaking: texts that are being spoken.
        metrics: of the server.

    Raises:
        UserError: the model has no tokenizer.
        EngineError: its cache does not fit the memory.
    """

    def __init__(self, model: MuOmni, settings: ServerSettings) -> None:
        self.model = model.eval()
        self.tokenizer = checked_tokenizer(model, model.tokenizer)
        self.running = 0
        self.speaking = 0
        self.context = model.config.thinker.max_position_embeddings
        self._settings = settings
        # A normalizer may join characters, four into one at most.
        self._max_characters = 4 * self.context * max(map(len, self.tokenizer.backend.get_vocab()))
        self._places = settings.slots + settings.max_waiting
        self.engine = make_engine(
            model,
            slots=settings.slots,
            capacity=self.context,
            dtype=torch.int8 if model.cache_dtype == "int8" else None,
            most_waiting=self._places * settings.max_choices,
            runner=model.runner,
        ).start()
        self._pool = ThreadPoolExecutor(settings.media_workers, thread_name_prefix="muomni-media")
        self.metrics = Metrics(self.engine, model.runtime.media, lambda: self.running, lambda: self.speaking)
        self._turns = SpeechTurns(self.engine.run_later)
        self._stopping = False
        self._idle = asyncio.Event()
        self._steps = 0
        self._moved = time.monotonic()
        self._pulse: Pulse | None = None  # belongs to the event loop

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places, taken before anything of a request is read.

        Raises:
            ApiError: all are taken, or the server stops.
        """
        if self._stopping:
            raise overloaded("the server is stopping")
        if self.running >= self._places:
            raise overloaded(f"{self.running} requests are open already: try again later")
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    @contextmanager
    def speaking_place(self) -> Iterator[None]:
        """Holds one of the places of speech, beside a `place`.

        Raises:
            ApiError: all are taken, or the server stops.
        """
        if self._stopping:
            raise overloaded("the server is stopping")
        if self.speaking >= self._settings.max_speaking:
            raise overloaded(f"{self.speaking} texts are being spoken already: try again later")
        self.speaking += 1
        try:
            yield
        finally:
            self.speaking -= 1

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the model's voices."""
        talker = self.model.config.talker
        return () if talker is None else talker.voices

    @property
    def frame_rate(self) -> float:
        """Frames of a second of speech."""
        return codec_of(self.model).frame_rate

    def speech(self, voice: str | None, seed: int | None) -> TextSpeech:
        """The speech of a text that comes in pieces; `close` ends it.

        Raises:
            ApiError: the model does not speak, or has no such voice.
        """
        if not self.voices:
            raise ApiError(400, "this model does not speak", param="model", code="unsupported_value")
        if voice is not None and voice not in self.voices:
            message = f"voice: there are {', '.join(self.voices)}, not {voice[:40]!r}"
            raise ApiError(400, message, param="voice", code="invalid_value")
        settings = SpeechSettings(voice=voice, seed=seed)
        return TextSpeech(self.model, self.tokenizer, self.model.runtime.speakers, settings)

    async def compute(self, job: Callable[[], T]) -> T:
        """The result of what the model thread computes between two steps."""
        return await asyncio.wrap_future(self.engine.run_later(job))

    async def turn(self, speech: TextSpeech, *, paced: bool) -> Tensor | None:
        """What one turn of a speech completed; see `TextSpeech.work`.

        Args:
            speech: nobody else asks for its turns.
            paced: while there is text to compute, a speech waits that is ahead of who listens.
        """
        while paced and self.engine.active and (rest := speech.lead - AHEAD_S) > 0:  # noqa: ASYNC110 - time passes
            await asyncio.sleep(min(rest, _LOOK_S))
        return await asyncio.wrap_future(self._turns.take(speech))

    async def in_pool(self, function: "partial[T]") -> T:
        """Runs what would hold up the event loop: parsing of large bodies, decoding."""
        try:
            job = asyncio.get_running_loop().run_in_executor(self._pool, function)
        except RuntimeError:  # a WebSocket may still be open when the pool has been closed
            if not self._stopping:
                raise
            raise overloaded("the server is stopping") from None
        return await job

    async def prepare(
        self,
        prompt: Any,
        params: SamplingParams,
        *,
        raw: bool,
        alone: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> EngineInput:
        """The engine's input: the prompt read and its media decoded in the pool, and encoded by the model thread.

        A short text is read at once: that takes a tenth of a millisecond, less than the way to the pool and back.

        Raises:
            PromptError, MediaError: the prompt is wrong.
        """
        runtime, max_pixels = self.model.runtime, self._settings.max_pixels
        reading = Reading(raw=raw, alone=alone, files=False, grammars=runtime.grammars, max_pixels=max_pixels)
        work = partial(self._prepare, prompt, params, replace(reading, tools=tools))
        return work() if _is_short(prompt, params) and not tools else await self.in_pool(work)

    def _prepare(self, prompt: Any, params: SamplingParams, reading: Reading) -> EngineInput:
        encoders = self.model.runtime.media
        self._check_length(prompt, reading.tools)
        return prepare(self.model, self.tokenizer, encoders, [(prompt, params)], [""], reading, self.engine.run)[0]

    def _check_length(self, prompt: Any, tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Refuses a text that cannot fit, however its characters are joined: to tokenize it would take very long."""
        contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        calls = [] if isinstance(prompt, str) else [message.get("tool_calls", ()) for message in prompt]
        count = len(json.dumps([tools, calls])) if tools or any(calls) else 0
        for content in contents:
            texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            count += sum(map(len, texts))
        if count > self._max_characters:
            raise PromptError(
                f"the prompt has {count:,} characters, more than fit the context of {self.context} tokens"
            )

    def media_tokens(self, prompt: EngineInput) -> dict[str, int]:
        """How many tokens of a prompt are places of pictures and of sounds, in OpenAI's names."""
        config = self.model.config
        ids = {"image_tokens": config.image_token_id, "audio_tokens": config.audio_token_id}
        return {name: prompt.ids.count(token) for name, token in ids.items() if token is not None}

    def stream(
        self, prompt: EngineInput, *, batch_invariant: bool = False, speculate: bool = False, row: int = 0
    ) -> AsyncTextStream:
        """A reply that is being computed; see `AsyncTextStream`.

        Raises:
            PromptError: speculation would have no effect.
        """
        if speculate:
            check_guessable(prompt.params)
        options: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": speculate, "row": row}
        if self._pulse is None:
            self._pulse = Pulse()
        return AsyncTextStream(self.engine, self.tokenizer, prompt, self._pulse, **options)

    async def watch(self) -> None:
        """Notes when the model thread took its last step, until it is cancelled."""
        while True:
            if self.engine.steps != self._steps or not self.engine.active:
                self._steps, self._moved = self.engine.steps, time.monotonic()
            await asyncio.sleep(_WATCH_S)

    @property
    def state(self) -> State:
        """What `/health` says."""
        if self._stopping:
            return "stopping"
        if not self.engine.alive:
            return "dead"
        if time.monotonic() - self._moved > self._settings.stall_s:
            return "stalled"
        return "ok" if self.engine.active else "idle"

    async def warm_up(self) -> None:
        """Answers one prompt, so that the first client does not wait for what is made once."""
        prompt = EngineInput(self.tokenizer.encode("Hello") or [0], SamplingParams(max_new_tokens=4, temperature=0), 4)
        stream = self.stream(prompt)
        try:
            async for _ in stream:
                pass
        finally:
            stream.close()
        if self.voices:
            await self._warm_up_speech()

    async def _warm_up_speech(self) -> None:
        """Speaks a number: the library that puts numbers into words takes seconds to load."""
        with closing(self.speech(None, 0)) as speech, suppress(SpeechError):
            await self.in_pool(partial(speech.push, "Number 1. "))
            speech.finish()
            while not speech.ended:
                await self.compute(speech.work)

    def stop_admitting(self) -> None:
        """From now on requests are refused with 503; those that run go on."""
        self._stopping = True

    async def drain(self, seconds: float) -> None:
        """Waits until all open requests have ended, at most so long; then ends them with an error."""
        self.stop_admitting()
        if self.running:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
        await asyncio.to_thread(self.engine.close)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_short(prompt: Any, params: SamplingParams) -> bool:
    """Whether a prompt is quickly read: a few short texts, and no grammar to compile."""
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return (
        params.grammar is None
        and len(contents) <= _SHORT_MESSAGES
        and all(isinstance(content, str) for content in contents)
        and sum(map(len, contents)) <= _SHORT
    )
