"""One client on one WebSocket: its events one after the other, its responses beside them."""

import asyncio
import json
import logging
import time
from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from muomni.errors import UserError
from muomni.infer.sampling import SamplingParams
from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError, api_error
from muomni.serve.realtime import events
from muomni.serve.realtime.conversation import (
    Conversation,
    GivenItem,
    Item,
    ItemReference,
    Part,
    made,
    messages,
    new_id,
)
from muomni.serve.realtime.listener import KEPT_S, Listener
from muomni.serve.realtime.responses import Plan, Response
from muomni.serve.realtime.session import ServerVad, Session, check_voice, updated
from muomni.serve.realtime.transcript import write_down
from muomni.serve.settings import ServerSettings

log = logging.getLogger("muomni.serve")
_LARGE_EVENT = 256 << 10
# Responses at a time: one of the conversation, and some that are left out of it.
_MOST_RESPONSES = 4


def _ms(place: int) -> int:
    return place * 1000 // SAMPLE_RATE


class Connection:
    """One session.

    Args:
        websocket: accepted.
        engine: computes.
        settings: of the server.
        listener: for its sound.
    """

    def __init__(
        self,
        websocket: WebSocket,
        engine: ServingEngine,
        settings: ServerSettings,
        listener: Listener,
    ) -> None:
        self._websocket, self._engine, self._settings = websocket, engine, settings
        config = engine.model.config
        self._hears = config.audio is not None
        voices = engine.voices
        self._session = Session(
            id=new_id("sess"),
            expires_at=int(time.time() + settings.session_s),
            model=settings.model_name,
            output_modalities=["audio"] if voices else ["text"],
        )
        if voices:
            self._session.audio.output.voice = voices[0]
        if self._hears:
            self._session.audio.input.turn_detection = ServerVad(type="server_vad")
        self._ends = time.monotonic() + settings.session_s
        self._conversation = Conversation(settings.max_body)
        self._listener = listener
        self._turn, self._begun = "", 0  # id and begin of the item that is being said
        self._idled: Response | None = None  # after which it was too quiet for too long, or somebody spoke
        self._responses: list[Response] = []
        self._writing: list[asyncio.Future[None]] = []  # transcripts of what was heard
        self._closed = False
        self._listener.detect(self._session.audio.input.turn_detection)
        self._handlers: dict[type[events.Event], Any] = {
            events.SessionUpdate: self._update,
            events.AudioAppend: self._append,
            events.AudioCommit: self._commit,
            events.AudioClear: self._clear,
            events.ItemCreate: self._create_item,
            events.ItemRetrieve: self._retrieve_item,
            events.ItemDelete: self._delete_item,
            events.ItemTruncate: self._truncate_item,
            events.ResponseCreate: self._create_response,
            events.ResponseCancel: self._cancel_response,
            events.OutputClear: self._clear_output,
        }

    async def serve(self) -> None:
        """Answers events until the client leaves or its time is up; everything is given back."""
        try:
            await self._emit("session.created", session=self._session.model_dump())
            while not self._closed:
                try:
                    message = await asyncio.wait_for(self._websocket.receive(), self._ends - time.monotonic())
                except TimeoutError:
                    await self._expire()
                    return
                if message["type"] == "websocket.disconnect":
                    return
                await self._take(message)
        finally:
            self._closed = True
            for task in self._writing:
                task.cancel()
            for response in self._responses:
                await response.abandon()
            if self._writing:
                await asyncio.wait(self._writing)

    async def _expire(self) -> None:
        minutes = self._settings.session_s / 60
        error = ApiError(400, f"the session is over: it may last {minutes:g} minutes", code="session_expired")
        await self._emit("error", error=events.error_fields(error, None))
        await self._websocket.close(1000, "the session is over")

    async def _take(self, message: Any) -> None:
        """Handles an event; what is wrong with it is told, and the connection stays."""
        event_id = None
        try:
            text = message.get("text")
            if text is None:
                raise ApiError(400, "events are JSON in text frames", code="invalid_event")
            if len(text) > _LARGE_EVENT:
                event = await self._engine.in_pool(partial(events.parsed, text))
            else:
                event = events.parsed(text)
            event_id = event.event_id
            await self._handlers[type(event)](event)
        except events.EventError as error:
            await self._tell(error.error, error.event_id)
        except Exception as error:  # noqa: BLE001 - told to the client, and where it is a bug to the log
            await self._tell(error, event_id)

    async def _tell(self, error: Exception, event_id: str | None) -> None:
        if not isinstance(error, ValidationError) and api_error(error).status == 500:
            log.error("an event failed", exc_info=error)
        await self._emit("error", error=events.error_fields(error, event_id))

    async def _emit(self, kind: str, /, **fields: Any) -> None:
        """Sends an event; nobody is told anything once the client has left."""
        if self._closed:
            return
        text = json.dumps({"type": kind, "event_id": new_id("event"), **fields}, ensure_ascii=False)
        try:
            await self._websocket.send({"type": "websocket.send", "text": text})
        except WebSocketDisconnect:
            self._closed = True

    async def _update(self, event: events.SessionUpdate) -> None:
        self._session = updated(self._session, event.session, self._engine.voices, hears=self._hears)
        self._listener.detect(self._session.audio.input.turn_detection)
        await self._emit("session.updated", session=self._session.model_dump())

    async def _append(self, event: events.AudioAppend) -> None:
        self._check_hears()
        for mark in await self._engine.in_pool(partial(self._listener.hear, event.audio)):
            await (self._begin_turn(mark.place) if mark.begins else self._end_turn(mark.place))
        settings = self._session.audio.input.turn_detection
        if settings is not None and not self._listener.speaking and self._is_idle(settings):
            await self._prompt_again()

    async def _begin_turn(self, place: int) -> None:
        self._turn, self._begun = new_id("item"), place
        await self._emit("input_audio_buffer.speech_started", audio_start_ms=_ms(place), item_id=self._turn)
        active, settings = self._active, self._session.audio.input.turn_detection
        self._idled = self._latest
        if active is not None and settings is not None and settings.interrupt_response:
            await active.cancel("turn_detected")

    async def _end_turn(self, place: int) -> None:
        await self._emit("input_audio_buffer.speech_stopped", audio_end_ms=_ms(place), item_id=self._turn)
        await self._add_sound(self._turn, self._begun, place)
        settings = self._session.audio.input.turn_detection
        if settings is not None and settings.create_response:
            self._start(await self._plan(events.ResponseOptions()))

    @property
    def _latest(self) -> Response | None:
        """The last response of the conversation."""
        return next((each for each in reversed(self._responses) if each.plan.conversation is not None), None)

    def _is_idle(self, settings: ServerVad) -> bool:
        """Whether nobody has spoken for long since the last response was played."""
        latest, timeout = self._latest, settings.idle_timeout_ms
        if timeout is None or latest is None or latest is self._idled or not latest.ended:
            return False
        return time.monotonic() > latest.ended_at + latest.sound_s + timeout / 1000

    async def _prompt_again(self) -> None:
        """The silence is an item, to which the model answers."""
        self._idled, name, end = self._latest, new_id("item"), self._listener.buffer.end
        begin = self._listener.buffer.begin
        times = {"audio_start_ms": _ms(begin), "audio_end_ms": _ms(end)}
        await self._emit("input_audio_buffer.timeout_triggered", item_id=name, **times)
        await self._add_sound(name, begin, end)
        self._start(await self._plan(events.ResponseOptions()))

    def _check_hears(self) -> None:
        if not self._hears:
            raise ApiError(400, "this model does not hear", code="unsupported_value")

    async def _commit(self, _: events.AudioCommit) -> None:
        self._check_hears()
        await self._engine.in_pool(partial(self._listener.finish))
        held = (self._listener.buffer.end - self._listener.buffer.begin) / SAMPLE_RATE
        if held < KEPT_S:
            message = f"the buffer holds {held * 1000:.0f} ms of sound, and an item needs {KEPT_S * 1000:.0f}"
            raise ApiError(400, message, code="input_audio_buffer_commit_empty")
        await self._add_sound(new_id("item"), self._listener.buffer.begin, self._listener.buffer.end)

    async def _add_sound(self, name: str, begin: int, end: int) -> None:
        """Makes an item of the sound between two places."""
        item = Item("user", [Part("input_audio", sound=self._listener.buffer.take(begin, end))], id=name)
        previous = self._conversation.add(item)
        await self._emit("input_audio_buffer.committed", previous_item_id=previous, item_id=item.id)
        await self._show(item, previous)
        settings = self._session.audio.input.transcription
        if settings is not None:
            longest = self._settings.max_transcribed_s
            writing = write_down(self._engine, self._emit, item, settings, longest)
            self._writing = [*(task for task in self._writing if not task.done()), asyncio.ensure_future(writing)]

    async def _show(self, item: Item, previous: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._emit(kind, previous_item_id=previous, item=item.wire)

    async def _clear(self, _: events.AudioClear) -> None:
        await self._engine.in_pool(partial(self._listener.finish))
        self._listener.buffer.take(self._listener.buffer.end, self._listener.buffer.end)
        await self._emit("input_audio_buffer.cleared")

    async def _create_item(self, event: events.ItemCreate) -> None:
        item = await self._made(event.item, "item")
        previous = self._conversation.add(item, event.previous_item_id)
        await self._show(item, previous)

    async def _retrieve_item(self, event: events.ItemRetrieve) -> None:
        await self._emit("conversation.item.retrieved", item=self._conversation.find(event.item_id).wire)

    async def _delete_item(self, event: events.ItemDelete) -> None:
        self._conversation.delete(event.item_id)
        await self._emit("conversation.item.deleted", item_id=event.item_id)

    async def _truncate_item(self, event: events.ItemTruncate) -> None:
        place = {"item_id": event.item_id, "content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
        self._conversation.truncate(event.item_id, event.content_index, event.audio_end_ms)
        await self._emit("conversation.item.truncated", **place)

    async def _create_response(self, event: events.ResponseCreate) -> None:
        self._start(await self._plan(event.response))

    async def _plan(self, options: events.ResponseOptions) -> Plan:
        """What a response is to be, by the session and its own options."""
        session, conversation = self._session, self._conversation
        modalities = options.output_modalities or session.output_modalities
        voice = session.audio.output.voice_name
        if options.audio is not None and options.audio.output.voice_name is not None:
            voice = options.audio.output.voice_name
        check_voice(modalities, voice, self._engine.voices, "response")
        limit = options.max_output_tokens or session.max_output_tokens
        most = self._settings.max_tokens
        items = conversation.items
        if options.input is not None:
            items = [await self._given(each, f"response.input[{n}]") for n, each in enumerate(options.input)]
        return Plan(
            items=list(items),
            instructions=session.instructions if options.instructions is None else options.instructions,
            spoken=modalities == ["audio"],
            voice=voice,
            limit=most if limit == "inf" else min(limit, most),
            wire_limit=limit,
            drops=session.truncation == "auto",
            conversation=conversation if options.conversation == "auto" else None,
            metadata=options.metadata,
        )

    async def _given(self, each: Any, where: str) -> Item:
        if isinstance(each, ItemReference):
            return self._conversation.find(each.id)
        return await self._made(each, where)

    async def _made(self, given: GivenItem, where: str) -> Item:
        """The item that a client means; its pictures are looked at now, so that one that is none is told at once."""
        item = await self._engine.in_pool(partial(made, given, where))
        if any(part.image for part in item.content):
            params = SamplingParams(max_new_tokens=1)
            try:
                with self._engine.place():
                    await self._engine.prepare(messages([item], ""), params, raw=False, alone=False)
            except UserError as error:
                raise ApiError(400, f"{where}: {error}", param=where, code="invalid_value") from None
        return item

    def _start(self, plan: Plan) -> None:
        if plan.conversation is not None and self._active is not None:
            message = "the conversation has an active response: wait for its end, or cancel it"
            raise ApiError(400, message, code="conversation_already_has_active_response")
        latest = self._latest
        self._responses = [each for each in self._responses if not each.ended or each is latest]
        if sum(not each.ended for each in self._responses) >= _MOST_RESPONSES:
            raise ApiError(400, f"{_MOST_RESPONSES} responses are being made already", code="too_many_responses")
        self._responses.append(Response(self._engine, self._emit, plan))

    @property
    def _active(self) -> Response | None:
        """The response of the conversation that is being made."""
        active = (each for each in self._responses if each.plan.conversation is not None and not each.ended)
        return next(active, None)

    async def _cancel_response(self, event: events.ResponseCancel) -> None:
        response = self._active
        if event.response_id is not None:
            named = (each for each in self._responses if each.id == event.response_id and not each.ended)
            response = next(named, None)
        if response is None:
            message = "there is no such response that is being made"
            raise ApiError(400, message, param="response_id", code="response_cancel_not_active")
        await response.cancel("client_cancelled")

    async def _clear_output(self, _: events.OutputClear) -> None:
        message = "output_audio_buffer.clear is for WebRTC; here the client plays, and may send response.cancel"
        raise ApiError(400, message, param="type", code="unsupported_value")
