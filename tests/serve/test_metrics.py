import base64
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import Running


def values(server: Running) -> dict[str, float]:
    text = server.http.get("/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.name + "".join(sample.labels.values()): sample.value for sample in samples}


def test_requests_are_counted_once(serving: Callable[..., Any]) -> None:
    with serving() as server:
        before = values(server)
        usage = server.chat(max_tokens=8).json()["usage"]
        server.chat(max_tokens=8, stream=True, n=2)
        server.chat(temperature=-1)
        after = values(server)

    def grew(name: str) -> float:
        return after[f"muomni:{name}"] - before.get(f"muomni:{name}", 0)

    assert grew("generation_tokens_total") == 24
    assert grew("prompt_tokens_total") == 3 * usage["prompt_tokens"]
    assert grew("prefix_cache_queries_total") == 3 * usage["prompt_tokens"]
    assert 0 < grew("prefix_cache_hits_total") < grew("prefix_cache_queries_total")
    assert grew("request_success_totallength") == 3
    assert grew("requests_refused_totalinvalid_value") == 1
    for name in (
        "time_to_first_token",
        "inter_token_latency",
        "e2e_request_latency",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
    ):
        assert grew(f"{name}_seconds_count") == 3
    assert (
        after["muomni:num_requests_open"]
        == after["muomni:num_requests_running"]
        == after["muomni:num_requests_waiting"]
        == 0
    )


def test_media_are_counted_by_kind(serving: Callable[..., Any], wav: bytes) -> None:
    sound = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(wav[:-2] + b"\x07\x06").decode(), "format": "wav"},
    }
    with serving() as server:
        before = values(server)
        for _ in range(2):  # the second is known
            server.chat([sound, {"type": "text", "text": "What is this?"}])
        after = values(server)
    names = [f"muomni:media_encoded_total{kind}" for kind in ("image", "audio")]
    assert [after[name] - before[name] for name in names] == [0, 1]
