"""Server-sent events: one line of ASCII JSON each, nothing else.

No comments as pings and no `id:`, which break clients; JSON in ASCII cannot hold a line break that would cut an event.
"""

import json
from typing import Any

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"
