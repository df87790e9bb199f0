"""What `/metrics` says, in Prometheus' form; names as vLLM's, with the prefix `muomni:`.

Times are of the wall clock, from the arrival of a request, with its wait in the queue.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from muomni.infer.async_streaming import AsyncTextStream
from muomni.infer.encoder_cache import EncoderCache
from muomni.infer.engine.engine import Engine
from muomni.infer.speech import TextSpeech
from muomni.infer.streaming import Chunk

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 5)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Of one server; nothing is shared with another one in the same process.

    Args:
        engine: asked for its requests when the metrics are read.
        media: asked for what it has encoded.
        places, speaking: give how many requests hold a place, and how many texts are being spoken.
    """

    def __init__(
        self, engine: Engine, media: EncoderCache, places: Callable[[], int], speaking: Callable[[], int]
    ) -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, says: str) -> Gauge:
            return Gauge(f"muomni:{name}", says, registry=registry)

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"muomni:{name}", says, labels, registry=registry)

        def seconds(name: str, says: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"muomni:{name}_seconds", says, registry=registry, buckets=buckets)

        slots = engine.cache.slots
        gauge("num_requests_running", "Requests with a slot").set_function(lambda: engine.running)
        gauge("num_requests_waiting", "Requests without a slot").set_function(lambda: engine.waiting)
        gauge("kv_cache_usage_perc", "Share of the slots that are in use, 0 to 1").set_function(
            lambda: engine.running / slots
        )
        gauge("num_requests_open", "Requests that hold a place").set_function(places)
        gauge("speech_streams", "Texts that are being spoken").set_function(speaking)
        registry.register(_Encoded(media))
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._new = counter("generation_tokens", "Tokens generated")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked for in slots")
        self._hits = counter("prefix_cache_hits", "Of these, tokens that had been computed before")
        self._ended = counter("request_success", "Replies that came to their end", "finished_reason")
        self._refused = counter("requests_refused", "Requests that were answered with an error", "reason")
        self._first = seconds("time_to_first_token", "From arrival to the first token")
        self._between = seconds("inter_token_latency", "Mean time between the tokens of a reply", _TOKEN_SECONDS)
        self._whole = seconds("e2e_request_latency", "From arrival to the last token")
        self._queue = seconds("request_queue_time", "From arrival to the first token, without the time of its prefill")
        self._prefill = seconds("request_prefill_time", "Steps in which a prompt was read")
        self._decode = seconds("request_decode_time", "Steps between the first and the last token")
        self._first_audio = seconds("time_to_first_audio", "From the beginning of an answer to its first sound")
        self._audio = counter("audio_seconds", "Seconds of sound")
        self._underruns = counter("audio_underruns", "Pieces of sound that came after all before had been played")
        self._real_time = Histogram(
            "muomni:audio_real_time_factor",
            "Seconds of computing for a second of sound, of a whole speech",
            registry=registry,
            buckets=_FACTORS,
        )

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
        prefill = reply.timing.prefill_s
        self._prefill.observe(prefill)
        self._queue.observe(max(0.0, first - arrived - prefill))
        self._decode.observe(reply.timing.decode_s)
        self._ended.labels(reply.finish_reason).inc()
        self._new.inc(len(reply.tokens))
        self._prompt.inc(len(request.prompt))
        self._queries.inc(len(request.prompt))
        self._hits.inc(request.reused)

    def sounded(self, speech: TextSpeech, seconds: float, began: float) -> None:
        """Counts a piece of sound.

        Args:
            speech: has just completed it.
            seconds: of the piece.
            began: when the answer did, by `time.monotonic`.
        """
        self._audio.inc(seconds)
        if speech.timing.audio_s <= seconds:
            self._first_audio.observe(time.monotonic() - began)
        elif speech.lead < seconds:
            self._underruns.inc()

    def spoken(self, speech: TextSpeech) -> None:
        """Counts a speech that has ended, wherever it did."""
        if speech.timing.audio_s:
            self._real_time.observe(speech.timing.real_time)


class _Encoded(Collector):
    """How many media were encoded, by their kind."""

    def __init__(self, media: EncoderCache) -> None:
        self._media = media

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What Prometheus asks for."""
        family = CounterMetricFamily("muomni:media_encoded", "Media that went through an encoder", labels=["kind"])
        for kind in ("image", "audio"):
            family.add_metric([kind], self._media.encoded_kinds[kind])
        yield family
