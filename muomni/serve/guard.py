"""What every request passes before an endpoint sees it: host, origin, key, content type and size.

Pure ASGI: Starlette's `BaseHTTPMiddleware` breaks streams and disconnects.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muomni.serve.errors import ApiError
from muomni.serve.settings import ServerSettings, is_loopback

_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
# A browser's WebSocket cannot send `Authorization`: the key comes as a subprotocol, and never in the URL.
_KEY_PROTOCOL = "openai-insecure-api-key."

# A name or address and its port, nothing else that a URL may have there.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s\[\]:/@?#\\]+)(:[0-9]{1,5})?", re.ASCII)
_MOST_DIGITS = 20
# How much longer than its next bytes a whole body may take.
_WHOLE_BODY = 10


def host_name(host: str) -> str:
    """The name in a `Host` header or an origin's place, without the port; IPv6 without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """Refuses what may not come in, and counts the bytes of what may.

    A server that listens on the loopback answers only to the loopback's names: a page elsewhere could otherwise
    reach it by a name that it points there (DNS rebinding).

    Args:
        app: what is guarded.
        settings: of the server.
        open_paths: need no key.
        uploads: paths that take multipart forms, which need no preflight request in a browser; all others take JSON.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, open_paths: Collection[str], uploads: Collection[str]
    ) -> None:
        self._app = app
        self._settings = settings
        self._open_paths = open_paths
        self._uploads = uploads
        self._keys = tuple(key.encode() for key in settings.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with what is wrong."""
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and origin in self._settings.origins
        try:
            self._check_host(headers)
            self._check_origin(origin, headers, allowed)
            if scope["method"] == "OPTIONS" and allowed:
                await self._with_cors(Response(status_code=204, headers=_PREFLIGHT), scope, receive, send, origin)
                return
            if scope["path"] not in self._open_paths:
                self._check_key(headers)
            self._check_content_type(scope, headers)
            limited = self._limited(scope, headers, receive)
        except ApiError as error:
            await self._with_cors(error.response(), scope, receive, send, origin if allowed else None)
            return
        await self._with_cors(self._app, scope, limited, send, origin if allowed else None)

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a WebSocket on, or answers its handshake with what is wrong."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers)
            self._check_origin(origin, headers, origin is not None and origin in self._settings.origins)
            protocols = scope.get("subprotocols", ())
            offered = [name.removeprefix(_KEY_PROTOCOL) for name in protocols if name.startswith(_KEY_PROTOCOL)]
            self._check_key(headers, offered)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        settings = self._settings
        host = headers.get("host", "")
        name = host_name(host) if _HOST.fullmatch(host) else ""
        if "*" in settings.hosts or name in settings.hosts:
            return
        if is_loopback(settings.host):
            if not is_loopback(name):
                raise ApiError(421, f"this server does not answer to the name {name[:80]!r}", code="wrong_host")
        elif settings.hosts and name != settings.host:
            raise ApiError(421, f"this server does not answer to the name {name[:80]!r}", code="wrong_host")

    def _check_origin(self, origin: str | None, headers: Headers, allowed: bool) -> None:
        """Pages of other origins are refused; programs send no origin."""
        if origin is None or allowed:
            return
        try:
            given = urlsplit(origin)
        except ValueError:
            given = urlsplit("")
        if given.scheme not in ("http", "https") or given.netloc.lower() != headers.get("host", "").lower():
            raise ApiError(403, "pages of this origin may not use this server (--allow-origin)", code="wrong_origin")

    def _check_key(self, headers: Headers, offered: Sequence[str] = ()) -> None:
        if not self._keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [*offered, key.strip()] if scheme.lower() == "bearer" else offered
        # All are compared, so that the time says nothing of which one was nearly right.
        matches = [
            hmac.compare_digest(one.encode("latin-1", "replace"), known)  # the bytes as they came
            for one in given
            for known in self._keys
        ]
        if not any(matches):
            message = "this server needs a key: Authorization: Bearer KEY"
            headers_ = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers_)

    def _check_content_type(self, scope: Scope, headers: Headers) -> None:
        if scope["method"] not in _METHODS_WITH_BODY:
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = "multipart/form-data" if scope["path"] in self._uploads else "application/json"
        if kind != wanted:
            raise ApiError(
                415, f"Content-Type must be {wanted}, not {kind or 'missing'}", code="unsupported_media_type"
            )

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """`receive` that counts: a length that is announced may be false, or missing."""
        limit = self._settings.max_upload + (1 << 20) if scope["path"] in self._uploads else self._settings.max_body
        too_large = ApiError(413, f"the request is larger than {limit >> 20} MiB", code="request_too_large")
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > _MOST_DIGITS or int(announced) > limit:
            raise too_large
        seen, whole = 0, False
        patience = self._settings.body_timeout_s
        end = time.monotonic() + _WHOLE_BODY * patience

        async def counted() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(min(patience, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "the body of the request does not come", code="request_timeout") from None
            whole = not message.get("more_body", False)
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise too_large
            return message

        return counted

    async def _with_cors(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, origin: str | None) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self._settings.origins:
                    headers.append("Vary", "Origin")
                if origin is not None:
                    headers["Access-Control-Allow-Origin"] = origin
            await send(message)

        await app(scope, receive, with_headers)


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}
