"""What `/metrics` says, in Prometheus' form; names as vLLM's, with the prefix `muomni:`.

Times are of the wall clock, from the arrival of a request, with its wait in the queue.
"""

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.streaming import Chunk

if TYPE_CHECKING:
    from muomni.serve.engine import ServingEngine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Of one server; nothing is shared with another one in the same process.

    Args:
        engine: asked for its requests when the metrics are read.
    """

    def __init__(self, engine: "ServingEngine") -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, says: str) -> Gauge:
            return Gauge(f"muomni:{name}", says, registry=registry)

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"muomni:{name}", says, labels, registry=registry)

        def seconds(name: str, says: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"muomni:{name}_seconds", says, registry=registry, buckets=buckets)

        core = engine.engine
        slots = core.cache.slots
        gauge("num_requests_running", "Requests with a slot").set_function(lambda: core.running)
        gauge("num_requests_waiting", "Requests without a slot").set_function(lambda: core.waiting)
        gauge("kv_cache_usage_perc", "Share of the slots that are in use, 0 to 1").set_function(
            lambda: core.running / slots
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._new = counter("generation_tokens", "Tokens generated")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in slots")
        self._hits = counter("prefix_cache_hits", "Of these, tokens that had been computed before")
        self._ended = counter("request_success", "Replies that came to their end", "finished_reason")
        self._refused = counter("requests_refused", "Requests that were answered with an error", "reason")
        self._first = seconds("time_to_first_token", "From arrival to the first token")
        self._between = seconds("inter_token_latency", "Mean time between the tokens of a reply", _TOKEN_SECONDS)
        self._whole = seconds("e2e_request_latency", "From arrival to the last token")

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def refused(self, reason: str) -> None:
        """Counts an error that a client was told."""
        self._refused.labels(reason).inc()

    async def measured(self, stream: AsyncTextStream, arrived: float) -> AsyncIterator[Chunk]:
        """The chunks of a stream, measured on the way.

        Args:
            stream: of one choice.
            arrived: when its request came, by `time.monotonic`.
        """
        first = 0.0
        async for chunk in stream:
            if not first and chunk.tokens:
                first = time.monotonic()
                self._first.observe(first - arrived)
            yield chunk
        last = time.monotonic()
        request, reply = stream.request, stream.reply
        if len(reply.tokens) > 1:
            self._between.observe((last - first) / (len(reply.tokens) - 1))
        self._whole.observe(last - arrived)
        self._ended.labels(reply.finish_reason).inc()
        self._new.inc(len(reply.tokens))
        self._prompt.inc(len(request.prompt))
        self._queries.inc(len(request.prompt))
        self._hits.inc(request.reused)
