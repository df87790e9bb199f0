"""Server-sent events: one line of ASCII JSON each, nothing else.

No comments as pings and no `id:`, which break clients; JSON in ASCII cannot hold a line break that would cut an event.
"""

import json
from typing import Any

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any], name: str = "") -> bytes:
    """One event; with a line of its name where it has one."""
    line = f"event: {name}\n".encode("ascii") if name else b""
    return line + b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"
