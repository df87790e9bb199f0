"""Load on `muomni serve`: many clients at once, some of whom leave, beside the same prompts without HTTP.

    python scripts/load_server.py runs/tiny --clients 16 --requests 160
    python scripts/load_server.py runs/omni --clients 32 --rate 20 --abandon 0.1 --pictures 0.3 --json

Prints percentiles of the time to the first token and between tokens, refusals and tokens per second; then tokens per
second of `MuOmni.chat_batch` over the same prompts with as many slots, in a process of its own.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

_WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "sun",
    "river",
    "small",
    "big",
    "old",
    "red",
    "sees",
    "finds",
    "asks",
    "says",
    "walks",
    "sleeps",
    "and",
    "or",
    "why",
]
_PERCENTILES = (50, 95, 99)


@dataclass
class Seen:
    """What clients saw.

    Attributes:
        first_s: seconds from a request to its first text.
        between_s: seconds between two chunks of text, divided by nothing: chunks may hold several tokens.
        tokens: of replies that came to their end.
        statuses: how many answers had which status; 0 for those that were left.
    """

    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


def make_prompts(count: int, pictures: float, seed: int) -> list[list[dict[str, Any]]]:
    """Messages of random words, some with a picture of a random colour."""
    draw = random.Random(seed)
    prompts = []
    for _ in range(count):
        parts: list[dict[str, Any]] = [{"type": "text", "text": " ".join(draw.choices(_WORDS, k=draw.randint(4, 40)))}]
        if draw.random() < pictures:
            parts.insert(0, {"type": "image_url", "image_url": {"url": _picture(draw)}})
        prompts.append([{"role": "user", "content": parts}])
    return prompts


def _picture(draw: random.Random) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(draw.randrange(256) for _ in range(3))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


async def ask(address: tuple[str, int], body: dict[str, Any], seen: Seen, leave_after: int | None) -> None:
    """One streamed request over a connection of its own; with `leave_after` gone after so many events."""
    began = last = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    content = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
    writer.write("\r\n".join(lines).encode() + content)
    try:
        status = int((await reader.readline()).split()[1])
        events = 0
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            events += 1
            if leave_after is not None and events > leave_after:
                status = 0
                break
            if chunk.get("usage"):
                seen.tokens += chunk["usage"]["completion_tokens"]
            elif chunk.get("choices") and chunk["choices"][0]["delta"].get("content"):
                now = time.perf_counter()
                (seen.between_s if last > began else seen.first_s).append(now - last)
                last = now
        seen.statuses[status] += 1
    finally:
        writer.close()


async def run_clients(
    address: tuple[str, int], prompts: Sequence[Any], given: argparse.Namespace
) -> tuple[Seen, float]:
    """All requests: at most `clients` at once, and with a rate not before their time. What was seen, and seconds."""
    seen, free, draw = Seen(), asyncio.Semaphore(given.clients), random.Random(given.seed)
    settings = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": given.max_tokens,
    }
    at = 0.0
    began = time.perf_counter()

    async def one(prompt: Any, start: float, leave_after: int | None) -> None:
        await asyncio.sleep(max(0.0, began + start - time.perf_counter()))
        async with free:
            await ask(address, {"messages": prompt, **settings}, seen, leave_after)

    tasks = []
    for prompt in prompts:
        at += draw.expovariate(given.rate) if given.rate else 0.0
        leaves = draw.randrange(1, 8) if draw.random() < given.abandon else None
        tasks.append(asyncio.ensure_future(one(prompt, at, leaves)))
    await asyncio.gather(*tasks)
    return seen, time.perf_counter() - began


def without_http(run: str, prompts: Sequence[Any], slots: int, max_tokens: int) -> tuple[int, float]:
    """Tokens and seconds of the same prompts in one call, after a warm-up."""
    from muomni import MuOmni

    model = MuOmni.from_pretrained(run)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": max_tokens, "batch_size": slots, "progress": False}
    model.chat_batch(prompts[:slots], **options)
    time.sleep(3)  # the native step may still be compiling
    began = time.perf_counter()
    replies = model.chat_batch(prompts, **options)
    return sum(reply.timing.new_tokens for reply in replies), time.perf_counter() - began


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds at 50, 95 and 99%."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": round(1000 * cuts[p - 1], 1) for p in _PERCENTILES}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Serves, asks, and computes the same without HTTP."""
    command = [sys.executable, "-m", "muomni", "serve", given.run, "--port", "0", "--slots", str(given.slots)]
    server = subprocess.Popen([*command, "--max-waiting", str(given.waiting)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line:  # it has said why
            raise SystemExit(2)
        url = line.split()[-1]
        port = int(url.split(":")[2].partition("/")[0])
        prompts = make_prompts(given.requests, given.pictures, given.seed)
        warm = argparse.Namespace(**{**vars(given), "rate": 0, "abandon": 0})
        asyncio.run(run_clients(("127.0.0.1", port), prompts[: given.slots], warm))
        time.sleep(3)
        seen, seconds = asyncio.run(run_clients(("127.0.0.1", port), prompts, given))
    finally:
        server.terminate()
        server.wait(60)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        tokens, alone_s = other.submit(without_http, given.run, prompts, given.slots, given.max_tokens).result()
    speed, alone = seen.tokens / seconds, tokens / alone_s
    return {
        "clients": given.clients,
        "requests": given.requests,
        "statuses": dict(seen.statuses),
        "first_ms": percentiles(seen.first_s),
        "between_ms": percentiles(seen.between_s),
        "tokens_per_s": round(speed, 1),
        "without_http_tokens_per_s": round(alone, 1),
        "share": round(speed / alone, 3),
        "exit_code": server.returncode,
    }


def main() -> None:
    """Reads the options and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run or model folder")
    parser.add_argument("--clients", type=int, default=16, help="requests that are open at once, at most")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="arrivals a second (Poisson); 0: as fast as clients get free"
    )
    parser.add_argument("--abandon", type=float, default=0.0, help="share of the clients who leave in the middle")
    parser.add_argument("--pictures", type=float, default=0.0, help="share of prompts with a picture")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = measure(given)
    if given.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<26} {value}")


if __name__ == "__main__":
    main()
