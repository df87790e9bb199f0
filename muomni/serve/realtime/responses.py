"""One response: from the prompt to its text, or its text and sound, as events; it may be ended at any moment."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from muomni.errors import MuOmniError, UserError
from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.preprocess import EngineInput
from muomni.infer.sampling import SamplingParams
from muomni.infer.speech import TextSpeech
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import api_error
from muomni.serve.realtime.conversation import Conversation, Item, Part, messages, new_id
from muomni.serve.speech import FORMATS, RATE, Spoken

log = logging.getLogger("muomni.serve")
Reason = Literal["turn_detected", "client_cancelled"]
# Of the context, the part that is left for a reply where the oldest items may be left out of its prompt.
_ROOM = 4


class Emit(Protocol):
    """Sends an event to the client."""

    def __call__(self, kind: str, /, **fields: Any) -> Awaitable[None]:
        """Sends one of that type."""


@dataclass(frozen=True)
class Plan:
    """What a response is to be.

    Attributes:
        items: of its prompt.
        instructions: of its prompt.
        spoken: with sound.
        voice: of the sound, or None.
        limit: tokens at most.
        wire_limit: the same as the client said it.
        drops: the oldest items may be left out where the context is too short.
        conversation: takes the new item, or None.
        metadata: given back.
    """

    items: Sequence[Item]
    instructions: str
    spoken: bool
    voice: str | None
    limit: int
    wire_limit: int | str
    drops: bool
    conversation: Conversation | None
    metadata: Mapping[str, str] | None


@dataclass
class Outcome:
    """How a response ended.

    Attributes:
        status: on the wire.
        details: on the wire.
        usage: on the wire, or None where nothing was computed.
    """

    status: str = "in_progress"
    details: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None


class Response:
    """Makes a response.

    Args:
        engine: computes.
        emit: sends events.
        plan: what it is to be.

    Attributes:
        id: of the response.
        plan: see there.
        ended_at: when its last event was sent, by `time.monotonic`; 0 before.
    """

    def __init__(self, engine: ServingEngine, emit: Emit, plan: Plan) -> None:
        self.id = new_id("resp")
        self.plan = plan
        self.ended_at = 0.0
        self._engine, self._emit = engine, emit
        self._arrived = time.monotonic()
        self._item: Item | None = None
        self._outcome = Outcome()
        self._reason: Reason | None = None
        self._work: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._run())

    @property
    def ended(self) -> bool:
        """Whether its last event has been sent."""
        return self._task.done()

    @property
    def sound_s(self) -> float:
        """Seconds of sound that were sent."""
        return 0.0 if self._item is None else self._written.sent_s

    async def cancel(self, reason: Reason) -> None:
        """Ends it now, unless it has ended; returns once its last event has been sent."""
        if self._reason is None:
            self._reason = reason
            if self._work is not None:
                self._work.cancel()
        await asyncio.wait([self._task])

    async def abandon(self) -> None:
        """Ends it because nobody listens any more."""
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    async def _run(self) -> None:
        await self._emit("response.created", response=self._wire())
        self._work = asyncio.ensure_future(self._make())
        if self._reason is not None:
            self._work.cancel()
        outcome = self._outcome
        try:
            await self._work
        except asyncio.CancelledError:
            outcome.status, outcome.details = "cancelled", {"type": "cancelled", "reason": self._reason}
        except Exception as error:
            told = api_error(error)
            if told.status == 500 and not isinstance(error, MuOmniError):
                log.exception("a response failed")
            self._engine.metrics.refused(told.code or told.kind)
            shown = {"type": told.kind, "code": told.code, "message": str(told)}
            outcome.status, outcome.details = "failed", {"type": "failed", "error": shown}
        await self._end()

    async def _make(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._engine.place())
            speech = None
            if self.plan.spoken:
                stack.enter_context(self._engine.speaking_place())
                speech = self._engine.speech(self.plan.voice, None)
                stack.callback(speech.close)
            prepared = await self._prepare()
            stream = self._engine.stream(prepared)
            stack.callback(stream.close)
            try:
                await self._begin()
                await self._say(stream, speech)
            finally:
                self._outcome.usage = self._usage(prepared, stream, speech)
            if stream.reply.finish_reason == "length":
                self._outcome.status = "incomplete"
                self._outcome.details = {"type": "incomplete", "reason": "max_output_tokens"}
            else:
                self._outcome.status, self._outcome.details = "completed", {"type": "completed"}

    async def _prepare(self) -> EngineInput:
        """The prompt; where it leaves no room for a reply, without the oldest items, if they may be left out."""
        items = self.plan.items
        if not self.plan.drops or len(items) < 2:
            return await self._prompt(items)
        prepared = await self._roomy(items)
        most = len(items) - 1  # so many are left out at most
        long, short = 0, most
        while prepared is None and short - long > 1:
            middle = (long + short) // 2
            if await self._roomy(items[middle:]) is None:
                long = middle
            else:
                short = middle
        return await self._prompt(items[short:]) if prepared is None else prepared

    async def _roomy(self, items: Sequence[Item]) -> EngineInput | None:
        """The prompt of items, or None where it is too large or leaves no room for a reply."""
        try:
            prepared = await self._prompt(items)
        except UserError:  # raised by the shortest prompt, if it is not for its size
            return None
        return prepared if prepared.limit >= min(self.plan.limit, self._engine.context // _ROOM) else None

    async def _prompt(self, items: Sequence[Item]) -> EngineInput:
        params = SamplingParams(max_new_tokens=self.plan.limit)
        prompt = await self._engine.in_pool(partial(messages, items, self.plan.instructions))
        return await self._engine.prepare(prompt, params, raw=False, alone=False)

    async def _begin(self) -> None:
        """Announces the item."""
        kind = "output_audio" if self.plan.spoken else "output_text"
        item = Item("assistant", [Part(kind)], "in_progress")
        conversation = self.plan.conversation
        previous = None if conversation is None else conversation.add(item)
        self._item = item
        added = item.wire | {"content": []}
        await self._emit("response.output_item.added", response_id=self.id, output_index=0, item=added)
        if conversation is not None:
            await self._emit("conversation.item.added", previous_item_id=previous, item=added)
        await self._tell("response.content_part.added", part=self._part())

    async def _say(self, stream: AsyncTextStream, speech: TextSpeech | None) -> None:
        chunks = self._engine.metrics.measured(stream, self._arrived)
        if speech is None:
            async for chunk in chunks:
                await self._write("response.output_text.delta", chunk.text)
            return
        self._written.said = speech.said
        spoken = Spoken(self._engine, speech, FORMATS["pcm"])
        async with aclosing(spoken.deltas(chunks, "")) as deltas:
            async for delta in deltas:
                await self._write("response.output_audio_transcript.delta", delta.get("transcript", ""))
                if "data" in delta:
                    await self._tell("response.output_audio.delta", delta=delta["data"])
                    self._written.sent_s += len(delta["data"]) * 3 / 4 / (2 * RATE)

    async def _write(self, kind: str, text: str) -> None:
        if text:
            await self._tell(kind, delta=text)
            self._written.text += text

    async def _end(self) -> None:
        """All that stands at the end, however it came."""
        item = self._item
        if item is not None:
            item.status = "completed" if self._outcome.status == "completed" else "incomplete"
            if self.plan.spoken:
                await self._tell("response.output_audio.done")
                await self._tell("response.output_audio_transcript.done", transcript=self._written.text)
            else:
                await self._tell("response.output_text.done", text=self._written.text)
            await self._tell("response.content_part.done", part=self._part())
            if self.plan.conversation is not None:
                previous = self.plan.conversation.before(item)
                await self._emit("conversation.item.done", previous_item_id=previous, item=item.wire)
            await self._emit("response.output_item.done", response_id=self.id, output_index=0, item=item.wire)
        await self._emit("response.done", response=self._wire())
        self.ended_at = time.monotonic()

    async def _tell(self, kind: str, **fields: Any) -> None:
        """An event of the one part of the one item."""
        assert self._item is not None
        place = {"response_id": self.id, "item_id": self._item.id, "output_index": 0, "content_index": 0}
        await self._emit(kind, **place, **fields)

    @property
    def _written(self) -> Part:
        assert self._item is not None
        return self._item.content[0]

    def _part(self) -> dict[str, Any]:
        if self.plan.spoken:
            return {"type": "audio", "transcript": self._written.text}
        return {"type": "text", "text": self._written.text}

    def _wire(self) -> dict[str, Any]:
        plan, outcome = self.plan, self._outcome
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": outcome.status,
            "status_details": outcome.details,
            "output": [] if self._item is None else [self._item.wire],
            "conversation_id": None if plan.conversation is None else plan.conversation.id,
            "output_modalities": ["audio" if plan.spoken else "text"],
            "max_output_tokens": plan.wire_limit,
            "audio": {"output": {"format": {"type": "audio/pcm", "rate": RATE}, "voice": plan.voice}},
            "metadata": plan.metadata,
            "usage": outcome.usage,
        }

    def _usage(self, prompt: EngineInput, stream: AsyncTextStream, speech: TextSpeech | None) -> dict[str, Any]:
        """Tokens; a frame of speech counts as one of sound."""
        request = stream.request
        given, written = len(request.prompt), len(request.tokens)
        media = self._engine.media_tokens(prompt)
        frames = 0 if speech is None else round(speech.timing.audio_s * self._engine.frame_rate)
        inputs = {"audio_tokens": 0, "image_tokens": 0, **media}
        return {
            "total_tokens": given + written + frames,
            "input_tokens": given,
            "output_tokens": written + frames,
            "input_token_details": {
                "text_tokens": given - sum(media.values()),
                **inputs,
                "cached_tokens": max(request.reused, 0),
            },
            "output_token_details": {"text_tokens": written, "audio_tokens": frames},
        }
