"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, whatever the status."""

from typing import Any

from starlette.responses import JSONResponse

from muomni.errors import EngineError, MediaError, MuOmniError, PromptError, SettingError, UserError

# Seconds after which a client that found no place may try again.
RETRY_AFTER_S = 1
# Characters of a message, which may quote what a client sent.
_LENGTH = 1000


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what was wrong, and what to do.
        kind: OpenAI's `type`.
        param: the key of the request that is meant, or None.
        code: OpenAI's short name of the mistake, or None.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message if len(message) <= _LENGTH else f"{message[:_LENGTH]}...")
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body, self.status, self.headers)


def overloaded(message: str) -> ApiError:
    """503: there is no place now; clients try again by themselves."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(503, message, kind="server_error", code="server_overloaded", headers=headers)


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error: all of a mistake of its own, nothing of what broke inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SettingError):
        param = "response_format" if error.setting == "grammar" else error.setting
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, PromptError | MediaError):
        code = "context_length_exceeded" if "context" in str(error) or "do not fit" in str(error) else "invalid_value"
        return ApiError(400, str(error), param="messages", code=code)
    if isinstance(error, UserError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, EngineError):  # no place in the queue, or the server stops
        return overloaded(str(error))
    hidden = "the server failed at this request; its log says why"
    return ApiError(500, str(error) if isinstance(error, MuOmniError) else hidden, kind="server_error")
