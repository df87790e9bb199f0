"""What the server allows, and where it listens; needs nothing of the extra `serve`."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServerSettings:
    """Of one server.

    Attributes:
        host, port: to listen on; port 0 takes a free one.
        keys: any of them opens every endpoint but `/health`; without one nothing is asked for.
        hosts: names that `Host` may have besides those of this machine's loopback, which are always allowed there;
            `*` allows any.
        origins: of pages that may call from elsewhere (CORS); the server's own page always may.
        model_name: what requests call the model.
        slots: requests that are computed side by side.
        max_waiting: requests beyond these that may wait, before the next is refused with 503.
        max_body: bytes of a JSON body.
        max_upload: bytes of an uploaded file.
        max_tokens: of a reply, where a request says nothing, and at most.
        max_choices: `n` at most.
        max_speaking: replies and texts that are spoken side by side; more are refused with 503.
        max_media: pictures and sounds of one request at most.
        max_sessions: open WebSockets at most; more are refused with 503.
        session_s: seconds that a WebSocket may stay open.
        max_sound_s: seconds of sound that a session may send before it is an item of the conversation.
        max_pixels: of all pictures of one request together.
        max_transcribed_s: seconds of a sound that is to be transcribed.
        media_workers: threads that decode media.
        strict: refuse unknown keys of a request, in the place of naming them in a header.
        drain_s: seconds that open replies get to end once the server is told to stop.
        body_timeout_s: seconds in which the next bytes of a body come, or the request is over; ten times that for all.
        stall_s: seconds without a step, with requests active, after which `/health` says so.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    model_name: str = "muomni"
    slots: int = 8
    max_waiting: int = 64
    max_body: int = 64 << 20
    max_upload: int = 25 << 20
    max_tokens: int = 4096
    max_choices: int = 8
    max_speaking: int = 8
    max_media: int = 16
    max_pixels: int = 64 << 20
    max_sessions: int = 32
    session_s: float = 3600.0
    max_sound_s: float = 120.0
    max_transcribed_s: float = 1800.0
    media_workers: int = 2
    strict: bool = False
    drain_s: float = 20.0
    body_timeout_s: float = 30.0
    stall_s: float = 60.0


def is_loopback(name: str) -> bool:
    """Whether a name or address is this machine's own."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_keys(lines: Iterable[str]) -> tuple[str, ...]:
    """Keys of a file, one a line; blank lines and those that begin with # are left out."""
    stripped = (line.strip() for line in lines)
    return tuple(line for line in stripped if line and not line.startswith("#"))
