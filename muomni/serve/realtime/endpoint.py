"""The endpoint: who may open a session, and what all sessions share."""

from functools import partial

from starlette.websockets import WebSocket

from muomni.serve.engine import ServingEngine
from muomni.serve.errors import ApiError, overloaded
from muomni.serve.realtime.connection import Connection
from muomni.serve.realtime.listener import Listener
from muomni.serve.realtime.silero import SileroVoice, load_silero
from muomni.serve.realtime.vad import EnergyVoice
from muomni.serve.settings import ServerSettings


class Realtime:
    """`WS /v1/realtime` of one server.

    Args:
        engine: computes.
        settings: of the server.
    """

    def __init__(self, engine: ServingEngine, settings: ServerSettings) -> None:
        self._engine, self._settings = engine, settings
        self._sessions = 0
        self._silero = load_silero()

    async def serve(self, websocket: WebSocket) -> None:
        """Serves a client until it leaves or its time is up; refuses it with an HTTP status."""
        try:
            self._check(websocket)
        except ApiError as error:
            await websocket.send_denial_response(error.response())
            return
        self._sessions += 1
        try:
            protocols = websocket.scope.get("subprotocols", ())
            await websocket.accept("realtime" if "realtime" in protocols else None)
            voice = EnergyVoice if self._silero is None else partial(SileroVoice, self._silero)
            listener = Listener(voice, self._settings.max_sound_s)
            await Connection(websocket, self._engine, self._settings, listener).serve()
        finally:
            self._sessions -= 1

    def _check(self, websocket: WebSocket) -> None:
        known, name = self._settings.model_name, websocket.query_params.get("model")
        if name is not None and name != known:
            message = f"there is no model {name[:80]!r}; this server has {known!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if self._engine.state not in ("idle", "ok"):
            raise overloaded(f"the server is {self._engine.state}")
        if self._sessions >= self._settings.max_sessions:
            raise overloaded(f"{self._sessions} sessions are open already: try again later")
