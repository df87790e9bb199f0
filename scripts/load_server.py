"""Load on `muomni serve`: many clients at once, some of whom leave, beside the same prompts without HTTP.

    python scripts/load_server.py runs/tiny --clients 16 --requests 320 --max-tokens 256
    python scripts/load_server.py runs/omni --clients 32 --rate 20 --abandon 0.1 --pictures 0.3 --sounds 0.2 --json
    python scripts/load_server.py runs/speaking --clients 8 --speech 1 --int8

Prints percentiles of the time to the first token, between reads of tokens, to the first sound, and of `/health`
meanwhile; refusals, underruns, tokens per second, CPU seconds; then, where nothing is spoken, tokens per second of
`MuOmni.chat_batch` over the same prompts with as many slots, in a process of its own. Passes alternate, and `share` is
the median of their ratios. The client runs on the same cores: what it costs is in `share`.

Exit code 1: a reply was not complete or was an error other than 503, the share is below `--least-share`, playback ran
dry, or the server did not end with 0.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
import wave
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from load_client import Connection, Seen, chat

_WORDS = "the cat dog bird tree house sun river small big old red sees finds asks says walks sleeps and why"
_PERCENTILES = (50, 95, 99)
_SETTLE_S = 3.0  # the native step may still be compiling
_HEALTH_S = 0.05


@dataclass
class Load:
    """What one pass saw.

    Attributes:
        seen: every request.
        health_s: seconds that `/health` took, meanwhile.
        seconds: of the whole pass.
        cpu_s: of the client, the server's event loop and the whole server.
    """

    seen: list[Seen] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of replies that came to their end."""
        return sum(each.tokens for each in self.seen)


def make_prompts(given: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Messages of random words, some with a picture of a random colour or a random sound."""
    draw = random.Random(given.seed)
    prompts = []
    for _ in range(given.requests):
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": " ".join(draw.choices(_WORDS.split(), k=draw.randint(4, 40)))}
        ]
        if draw.random() < given.pictures:
            parts.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture(draw)}"}})
        if draw.random() < given.sounds:
            parts.insert(0, {"type": "input_audio", "input_audio": {"data": sound(draw), "format": "wav"}})
        prompts.append([{"role": "user", "content": parts}])
    return prompts


def sampling(number: int, given: argparse.Namespace) -> dict[str, Any]:
    """How a request is drawn, where it is not greedy."""
    return {"temperature": 1, "seed": number} if random.Random(number).random() < given.sampled else {}


def picture(draw: random.Random) -> str:
    """A PNG of one colour, in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(draw.randrange(256) for _ in range(3))).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def sound(draw: random.Random) -> str:
    """Half a second of noise, 16 kHz, in base64."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(draw.randbytes(16_000))
    return base64.b64encode(buffer.getvalue()).decode()


class Server:
    """`muomni serve` in a process of its own, in a `with` block; `code` is how it ended.

    Args:
        run: a run or model folder.
        options: of the command line.
    """

    def __init__(self, run: str, *options: str) -> None:
        command = [sys.executable, "-m", "muomni", "serve", run, "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.code: int | None = None

    def __enter__(self) -> "Server":
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:  # it has said why
            raise SystemExit(2)
        self.address = "127.0.0.1", int(line.split()[-1].split(":")[2].partition("/")[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self.code = self._process.wait(60)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of the event loop's thread and of all threads; 0 where the system does not say."""
        pid, tick = self._process.pid, os.sysconf("SC_CLK_TCK")
        seconds = {}
        for name, path in (("loop", f"/proc/{pid}/task/{pid}/stat"), ("server", f"/proc/{pid}/stat")):
            try:
                fields = Path(path).read_text().rpartition(")")[2].split()
            except OSError:
                fields = ["0"] * 13
            seconds[name] = (int(fields[11]) + int(fields[12])) / tick
        return seconds

    def rss(self) -> int:
        """Bytes of its memory; 0 where the system does not say."""
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            return 0


async def run_clients(server: Server, prompts: Sequence[Any], given: argparse.Namespace) -> Load:
    """All requests: at most `clients` at once, and with a rate not before their time."""
    load, draw = Load(), random.Random(given.seed)
    bodies = []
    at = 0.0
    for number, prompt in enumerate(prompts):
        more: dict[str, Any] = {"temperature": 0, "max_tokens": given.max_tokens}
        more |= sampling(number, given)
        if draw.random() < given.speech:
            more |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
        at += draw.expovariate(given.rate) if given.rate else 0.0
        leaves = draw.randrange(1, 8) if draw.random() < given.abandon else None
        bodies.append((at, chat(prompt, **more), leaves))
    bodies.reverse()
    before, client, began = server.cpu_s(), time.process_time(), time.perf_counter()

    async def one_client() -> None:
        connection = Connection(server.address)
        while bodies:
            at, body, leaves = bodies.pop()
            if at > (now := time.perf_counter() - began):
                await asyncio.sleep(at - now)
            load.seen.append(await connection.ask("/v1/chat/completions", body, leave_after=leaves))
        connection.close()

    async def health() -> None:
        connection = Connection(server.address)
        while True:
            seen = await connection.ask("/health")
            load.health_s.append(seen.ended - seen.began)
            await asyncio.sleep(_HEALTH_S)

    watching = asyncio.ensure_future(health())
    await asyncio.gather(*(one_client() for _ in range(given.clients)))
    load.seconds = time.perf_counter() - began
    watching.cancel()
    after = server.cpu_s()
    load.cpu_s = {"client": time.process_time() - client, **{name: after[name] - before[name] for name in after}}
    return load


class Alone:
    """The model without HTTP; lives in a process of its own."""

    model: Any = None

    @classmethod
    def answer(cls, run: str, prompts: Sequence[Any], given: argparse.Namespace) -> tuple[int, float]:
        """Tokens and seconds of all prompts in one call, after a warm-up."""
        from muomni import MuOmni

        one: dict[str, Any] = {"temperature": 0, "max_new_tokens": given.max_tokens}
        options: dict[str, Any] = {"batch_size": given.slots, "progress": False}
        if cls.model is None:
            cls.model = MuOmni.from_pretrained(run, int8=given.int8)
            cls.model.chat_batch(prompts[: given.slots], **one, **options)
            time.sleep(_SETTLE_S)
        drawn = [sampling(number, given) for number in range(len(prompts))]
        began = time.perf_counter()
        replies = cls.model.chat_batch(prompts, sampling=drawn, **one, **options)
        return sum(reply.timing.new_tokens for reply in replies), time.perf_counter() - began


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds at 50, 95 and 99%, and the most."""
    if not values:
        return {}
    cuts = statistics.quantiles([values[0], *values], n=100, method="inclusive")
    return {**{f"p{p}": round(1000 * cuts[p - 1], 1) for p in _PERCENTILES}, "max": round(1000 * max(values), 1)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Serves, asks, and computes the same without HTTP, in turns."""
    options = ["--slots", str(given.slots), "--max-waiting", str(given.waiting), *(["--int8"] if given.int8 else [])]
    prompts = make_prompts(given)
    loads: list[Load] = []
    alone: list[float] = []
    with (
        Server(given.run, *options) as server,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other,
    ):
        warm = argparse.Namespace(**{**vars(given), "rate": 0, "abandon": 0})
        asyncio.run(run_clients(server, prompts[: given.slots], warm))
        time.sleep(_SETTLE_S)
        for _ in range(given.rounds):
            loads.append(asyncio.run(run_clients(server, prompts, given)))
            if not given.speech:
                tokens, seconds = other.submit(Alone.answer, given.run, prompts, given).result()
                alone.append(tokens / seconds)
    return report(given, loads, alone, server)


def report(given: argparse.Namespace, loads: Sequence[Load], alone: Sequence[float], server: Server) -> dict[str, Any]:
    """All figures; `faults` are what the exit code is about."""
    seen = [each for load in loads for each in load.seen]
    spoke = [each for each in seen if each.sound]
    speeds = [load.tokens / load.seconds for load in loads]
    thousands = max(1, sum(load.tokens for load in loads)) / 1000
    result: dict[str, Any] = {
        "clients": given.clients,
        "requests": len(seen),
        "statuses": dict(Counter(each.status for each in seen)),
        "first_ms": percentiles([each.first - each.began for each in seen if each.first]),
        "between_ms": percentiles([gap for each in seen for gap in each.gaps]),
        "health_ms": percentiles([seconds for load in loads for seconds in load.health_s]),
        "cpu_ms_per_1000_tokens": {
            name: round(1000 * sum(load.cpu_s[name] for load in loads) / thousands, 2) for name in loads[0].cpu_s
        },
        "tokens_per_s": [round(speed, 1) for speed in speeds],
    }
    if spoke:
        result["first_sound_ms"] = percentiles([each.sound - each.began for each in spoke])
        result["sound_after_text_ms"] = percentiles([each.sound - each.first for each in spoke])
        result["sound_s"] = round(sum(each.sound_s for each in spoke), 1)
        result["real_time_factor"] = round(sum(load.seconds for load in loads) / result["sound_s"], 3)
        result["starved_ms"] = percentiles([each.starved_s for each in spoke])
        result["underruns"] = sum(each.starved_s > 0 for each in spoke)
    if alone:
        shares = [speed / other for speed, other in zip(speeds, alone, strict=True)]
        result["without_http_tokens_per_s"] = [round(speed, 1) for speed in alone]
        result["share"] = round(statistics.median(shares), 3)
    result["exit_code"] = server.code
    faults = {
        "replies that are not complete": sum(each.status == 200 and not each.ended for each in seen),
        "errors other than 503": sum(each.status not in (0, 200, 503) for each in seen),
        "refusals that do not say when to come again": sum(
            each.status == 503 and b"retry-after" not in each.headers for each in seen
        ),
        "share too small": int(result.get("share", 1.0) < given.least_share),
        "underruns": result.get("underruns", 0),
        "exit code of the server": int(server.code != 0),
    }
    result["faults"] = {name: count for name, count in faults.items() if count}
    return result


def main() -> None:
    """Reads the options and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run or model folder")
    parser.add_argument("--clients", type=int, default=16, help="requests that are open at once, at most")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="arrivals a second (Poisson); 0: as fast as clients get free"
    )
    parser.add_argument("--rounds", type=int, default=1, help="passes over all requests")
    parser.add_argument("--abandon", type=float, default=0.0, help="share of the clients who leave in the middle")
    parser.add_argument("--pictures", type=float, default=0.0, help="share of prompts with a picture")
    parser.add_argument("--sounds", type=float, default=0.0, help="share of prompts with a sound")
    parser.add_argument("--sampled", type=float, default=0.0, help="share of replies at temperature 1")
    parser.add_argument("--speech", type=float, default=0.0, help="share of replies that are spoken")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--int8", action="store_true", help="int8 weights")
    parser.add_argument("--least-share", type=float, default=0.0, help="of the tokens per second without HTTP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = measure(given)
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<26} {value}")
    raise SystemExit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
