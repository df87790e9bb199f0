"""A long run of mixed, wrong and abandoned requests against `muomni serve`; ends by itself and says what was wrong.

    python scripts/soak_server.py runs/nano --count 50000
    python scripts/soak_server.py runs/nano --count 500 --clients 8 --seed 3

Every right request is one of a few hundred, each answered alone at the start; `deterministic` replies must be the same
under load, to the last character. There are more clients than places, so that some are refused. Others send what is
wrong, or leave: before the end of the body, in the queue, while the prompt is read, in the middle of the reply.

Prints one JSON line and a verdict. Exit code 1: a reply was another one, a status was not what it should be, a place or
slot was not free in the end, or the server's memory grew after the first tenth.
"""

import argparse
import asyncio
import base64
import json
import math
import random
import re
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from load_client import Connection, Seen
from load_server import Server, picture, sound

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOTS, _WAITING = 6, 10
_NOUNS = ("cat", "dog", "bird", "tree", "house", "sun", "river", "king", "queen", "child")
_AGAIN_S = 0.25  # after a refusal
_FREE_S = 20.0  # for the last of those who left to be noticed
_GROWTH = 24 << 20  # bytes
_SPOKEN_CLOSE = 80  # of 32,767: sentences spoken side by side round otherwise
_GAUGES = ("num_requests_open", "num_requests_running", "num_requests_waiting", "speech_streams")


@dataclass
class Case:
    """A right request and what it must give.

    Attributes:
        path: of the URL.
        body: without `stream`.
        expected: of the whole answer.
    """

    path: str
    body: dict[str, Any]
    expected: Any = None


# What is wrong: a path, the body, its content type, and the statuses that may be the answer.
Wrong = tuple[str, bytes, str, set[int]]


def right_cases(model: dict[str, Any], draw: random.Random) -> list[Case]:
    """Texts greedy and drawn, with stop texts and several choices, and what else the model can."""
    inputs, outputs = (model["architecture"][f"{side}_modalities"] for side in ("input", "output"))
    cases = []
    for number in range(120):
        text = f"The {draw.choice(_NOUNS)} sat on the {draw.choice(_NOUNS)}. {number} " * draw.choice((1, 1, 1, 5))
        how: dict[str, Any] = {"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number}
        more = draw.choice(({}, {}, {"stop": ["e", "qu"]}, {"n": 2}, {"top_k": 5}, {"logit_bias": {"40": 3}}))
        how |= {"max_tokens": draw.randint(1, 24), "deterministic": True, **more}
        content: Any = text
        if number % 6 == 1 and "image" in inputs:
            url = f"data:image/png;base64,{picture(draw)}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        elif number % 6 == 2 and "audio" in inputs:
            heard = {"type": "input_audio", "input_audio": {"data": sound(draw), "format": "wav"}}
            content = [heard, {"type": "text", "text": text}]
        if number % 8 == 0:
            cases.append(Case("/v1/completions", {"prompt": text, **how}))
        else:
            cases.append(Case("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **how}))
    if "audio" in outputs:
        for number in range(6):
            body = {"input": f"The {_NOUNS[number]} sat.", "seed": number, "response_format": "pcm"}
            cases.append(Case("/v1/audio/speech", body))
            how = {"temperature": 1.0, "seed": number, "max_tokens": 12, "deterministic": True}
            how |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
            message = {"role": "user", "content": f"The {_NOUNS[number]} sat."}
            cases.append(Case("/v1/chat/completions", {"messages": [message], **how}))
    return cases


def wrong_requests(draw: random.Random) -> list[Wrong]:
    """What clients get wrong."""
    kind, chat, bad = "application/json", "/v1/chat/completions", {400}

    def message(content: Any, **more: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}).encode()

    def shown(url: str) -> bytes:
        return message([{"type": "image_url", "image_url": {"url": url}}])

    def heard(data: str) -> bytes:
        return message([{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}])

    junk = base64.b64encode(draw.randbytes(300)).decode()
    cut = picture(draw)[:60] + "=" * 4
    bodies = [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"messages": 3}', b"{}", b'{"messages": []}', b"[" * 9000]
    bodies += [message("Hi", **{key: value}) for key, value in _WRONG_VALUES]
    bodies += [message(None), message([]), message([{"type": "text"}]), message([{"type": "file"}]), message(3)]
    bodies += [shown("http://127.0.0.1/a.png"), shown("file:///etc/passwd"), shown(f"data:image/png;base64,{junk}")]
    bodies += [shown(f"data:image/png;base64,{cut}"), heard(junk), heard("!!"), message("long " * 20_000)]
    wrong: list[Wrong] = [(chat, body, kind, bad) for body in bodies]
    wrong.append((chat, message("Hi", model="other"), kind, {404}))
    wrong.append((chat, message("Hi"), "text/plain", {415}))
    wrong.append(("/v1/nothing", b"{}", kind, {404}))
    wrong.append(("/v1/models", b"{}", kind, {405}))
    wrong.append(("/v1/completions", b'{"prompt": 3}', kind, bad))
    wrong.append(("/tokenize", b"{}", kind, bad))
    spoken = b"{}", b'{"input": ""}', b'{"input": "!", "speed": 9}'
    wrong += [("/v1/audio/speech", body, kind, bad) for body in spoken]
    return wrong


_WRONG_VALUES: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("top_p", 7),
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("n", 1000),
    ("n", 0),
    ("seed", "x"),
    ("stop", [""] * 40),
    ("logit_bias", {"cat": 1}),
    ("logit_bias", {"40": 1e9}),
    ("modalities", ["smell"]),
    ("stream", "yes!"),
    ("speculate", "no!"),
    ("response_format", {"type": "verse"}),
    ("top_logprobs", 10_000),
]


def answer_of(case: Case, body: bytes) -> Any:
    """What of a whole answer must not change."""
    if case.path == "/v1/audio/speech":
        return array("h", body)
    choices = json.loads(body)["choices"]
    return [(text_of(choice, choice.get("message", {})), choice["finish_reason"]) for choice in choices]


def text_of(choice: dict[str, Any], message: dict[str, Any]) -> str:
    """The text of a choice, of a message or delta, or what is said of it; not its sound."""
    audio = message.get("audio") or {}
    return choice.get("text") or message.get("content") or audio.get("transcript") or ""


def joined(case: Case, body: bytes) -> Any:
    """The same of a stream's events, which may be in chunks."""
    texts, reasons = [""] * case.body.get("n", 1), [None] * case.body.get("n", 1)
    for event in re.findall(rb"data: (\{[^\n]*\})\n\n", unchunked(body)):
        chunk = json.loads(event)
        if "error" in chunk:
            return chunk
        for choice in chunk["choices"]:
            texts[choice["index"]] += text_of(choice, choice.get("delta", {}))
            reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    return list(zip(texts, reasons, strict=True))


def unchunked(body: bytes) -> bytes:
    """A body without the sizes of its chunks."""
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(pieces)


def same(one: Any, other: Any) -> bool:
    """Whether two answers are the same; of sounds nearly."""
    if not isinstance(one, array) or not isinstance(other, array):
        return bool(one == other)
    length = min(len(one), len(other))
    close = all(abs(a - b) <= _SPOKEN_CLOSE for a, b in zip(one[:length:7], other[:length:7], strict=True))
    return close and abs(len(one) - len(other)) < _SPOKEN_CLOSE


class Soak:
    """One run; `counts` of what was asked and answered, and `findings`.

    Args:
        server: answers.
        given: the options.
    """

    def __init__(self, server: Server, given: argparse.Namespace) -> None:
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.rss = 0
        self._server, self._given = server, given
        self._draw = random.Random(given.seed)
        self._left = given.count
        self._cases: list[Case] = []
        self._wrong = wrong_requests(self._draw)

    async def run(self) -> None:
        """All of it."""
        first = Connection(self._server.address, keep=True)
        model = json.loads((await first.ask("/v1/models")).body)["data"][0]
        self._cases = right_cases(model, self._draw)
        for case in self._cases:
            seen = await first.ask(case.path, json.dumps(case.body).encode())
            if seen.status != 200:
                raise SystemExit(f"alone, {json.dumps(case.body)[:200]} gave {seen.status}: {bytes(seen.body[:300])!r}")
            case.expected = answer_of(case, self._whole(seen))
        print(f"{len(self._cases)} requests answered alone", file=sys.stderr)
        await asyncio.gather(*(self._client(number) for number in range(self._given.clients)))
        await self._all_free(first)
        grown = self._server.rss() - self.rss
        self.counts["grown_kib"] = grown >> 10
        if grown > _GROWTH:
            self._found(f"memory grew by {grown >> 20} MiB after the first tenth")
        first.close()

    def _found(self, what: str) -> None:
        self.counts["findings"] += 1
        if len(self.findings) < 20:
            self.findings.append(what)

    async def _client(self, number: int) -> None:
        draw = random.Random(f"{self._given.seed} {number}")
        connection = Connection(self._server.address, keep=True)
        kinds: dict[str, tuple[float, Callable[..., Any]]] = {
            "right": (0.62, self._right),
            "wrong": (0.18, self._mistaken),
            "left": (0.12, self._leaves),
            "cut": (0.04, self._cuts),
            "looked": (0.04, self._looks),
        }
        weights = [weight for weight, _ in kinds.values()]
        while self._left > 0:
            self._left -= 1
            if self._left == self._given.count * 9 // 10:
                self.rss = self._server.rss()
            if not self._left % max(500, self._given.count // 20):
                print(f"{self._left} left, {self._server.rss() >> 20} MiB", dict(self.counts), file=sys.stderr)
            kind = draw.choices(list(kinds), weights)[0]
            self.counts[kind] += 1
            try:
                await asyncio.wait_for(kinds[kind][1](connection, draw), 60)
            except TimeoutError:
                self._found(f"{kind}: no answer in 60 s")
                connection.close()
            except (OSError, ValueError, KeyError) as error:
                self._found(f"{kind}: {error!r}")
                connection.close()
        connection.close()

    async def _right(self, connection: Connection, draw: random.Random) -> None:
        case = draw.choice(self._cases)
        streams = case.path != "/v1/audio/speech" and draw.random() < 0.6
        body = {**case.body, "stream": True} if streams else case.body
        seen = await connection.ask(case.path, json.dumps(body).encode())
        if self._refused(seen):
            await asyncio.sleep(_AGAIN_S)
            return
        if seen.status != 200 or not seen.ended:
            self._found(f"{json.dumps(body)[:300]}: {seen.status}, {bytes(seen.body[-200:])!r}")
            return
        got = joined(case, bytes(seen.body)) if streams else answer_of(case, self._whole(seen))
        if not same(got, case.expected):
            self.counts["other_replies"] += 1
            self._found(f"{json.dumps(body)[:300]}: {str(got)[:200]}, alone {str(case.expected)[:200]}")

    async def _mistaken(self, connection: Connection, draw: random.Random) -> None:
        path, body, kind, statuses = draw.choice(self._wrong)
        seen = await connection.ask(path, body, kind=kind)
        if self._refused(seen):
            return
        if seen.status not in statuses:
            self._found(f"{path} {body[:200]!r} ({kind}): {seen.status} {bytes(seen.body[:200])!r}")
        elif set(json.loads(self._whole(seen))["error"]) != {"message", "type", "param", "code"}:
            self._found(f"{path} {body[:200]!r}: no error as it should be: {bytes(seen.body[:200])!r}")

    async def _leaves(self, connection: Connection, draw: random.Random) -> None:
        """In the queue, while the prompt is read, or in the middle of the reply."""
        case = draw.choice(self._cases)
        body = {**case.body, "stream": draw.random() < 0.7, "max_tokens": 64, "deterministic": draw.random() < 0.5}
        if case.path == "/v1/audio/speech":
            body = case.body
        reads = draw.choice((0, 0, 1, 2, 3, 5))
        asking = asyncio.ensure_future(connection.ask(case.path, json.dumps(body).encode(), leave_after=reads or None))
        if not reads:
            await asyncio.sleep(draw.random() * 0.05)
            connection.close()
        await asking

    async def _cuts(self, connection: Connection, draw: random.Random) -> None:
        """Before the end of the body, or of the head."""
        connection.close()
        case = draw.choice(self._cases)
        body = json.dumps(case.body).encode()
        head = f"POST {case.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        _, writer = await asyncio.open_connection(*self._server.address)
        writer.write(whole[: draw.randrange(1, len(whole))])
        await asyncio.sleep(draw.random() * 0.02)
        writer.transport.abort()

    async def _looks(self, connection: Connection, draw: random.Random) -> None:
        path = draw.choice(("/health", "/v1/models", "/metrics", "/v1/audio/voices", "/openapi.json"))
        seen = await connection.ask(path)
        if seen.status != 200:
            self._found(f"{path}: {seen.status}")

    def _refused(self, seen: Seen) -> bool:
        """Whether there was no place; counts statuses."""
        self.counts[f"status {seen.status}"] += 1
        if seen.status == 503 and b"retry-after" not in seen.headers:
            self._found("503 without Retry-After")
        if not seen.status:
            self._found("the server closed the connection without an answer")
        return seen.status in (0, 503)

    @staticmethod
    def _whole(seen: Seen) -> bytes:
        return unchunked(bytes(seen.body)) if b"chunked" in seen.headers else bytes(seen.body)

    async def _all_free(self, connection: Connection) -> None:
        """All places and slots are free soon after the last client has left."""
        end = time.monotonic() + _FREE_S
        while True:
            text = self._whole(await connection.ask("/metrics")).decode()
            values = dict(re.findall(r"^muomni:(\w+) (\S+)$", text, re.MULTILINE))
            held = {name: values[name] for name in _GAUGES if float(values[name])}
            if not held:
                return
            if time.monotonic() > end:
                self._found(f"held {_FREE_S:g} s after the last client: {held}")
                return
            await asyncio.sleep(0.2)


def main() -> None:
    """Reads the options, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run or model folder; a small model will do")
    parser.add_argument("--count", type=int, default=2000, help="requests")
    parser.add_argument("--clients", type=int, default=18, help="side by side; more than the server has places")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = ["--slots", str(_SLOTS), "--max-waiting", str(_WAITING), "--shutdown-timeout", "5"]
    began = time.monotonic()
    with Server(given.run, *options) as server:
        soak = Soak(server, given)
        asyncio.run(soak.run())
        cpu = server.cpu_s()
    if server.code:
        soak.findings.append(f"the server ended with {server.code}")
    seconds = math.ceil(time.monotonic() - began)
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, **soak.counts, "findings": soak.findings}))
    print("FINDINGS" if soak.findings else "OK: nothing was wrong")
    raise SystemExit(1 if soak.findings else 0)


if __name__ == "__main__":
    main()
