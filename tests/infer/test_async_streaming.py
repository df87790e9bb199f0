"""Replies in an event loop: many at once, and one that is left early."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muomni import MuOmni
from muomni.errors import EngineError
from muomni.infer import Engine, SamplingParams
from muomni.infer.async_streaming import AsyncTextStream, Pulse
from muomni.infer.engine.engine import make_engine
from muomni.infer.preprocess import EngineInput

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPTS = ["The cat", "The dog", "Hello", "What is", "The mat", "slept"]


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


@pytest.fixture
def engine(model: MuOmni) -> "Iterator[Engine]":
    with make_engine(model, slots=3, capacity=100).start() as made:
        yield made


def stream(engine: Engine, model: MuOmni, text: str, count: int = 6) -> AsyncTextStream:
    assert model.tokenizer is not None
    params = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True)
    return AsyncTextStream(engine, model.tokenizer, EngineInput(model.tokenizer.encode(text), params, count), Pulse())


def test_an_event_loop_streams_many_at_once(engine: Engine, model: MuOmni) -> None:
    async def one(text: str) -> tuple[str, tuple[int, ...]]:
        running = stream(engine, model, text)
        chunks = [chunk async for chunk in running]
        assert sum((chunk.tokens for chunk in chunks), ()) == running.reply.tokens
        return "".join(chunk.text for chunk in chunks), running.reply.tokens

    async def all_of_them() -> list[tuple[str, tuple[int, ...]]]:
        return list(await asyncio.gather(*map(one, PROMPTS)))

    how = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    expected = [model.complete(text, **how) for text in PROMPTS]  # type: ignore[arg-type]
    assert asyncio.run(all_of_them()) == [(reply.text, reply.tokens) for reply in expected]


def test_a_stream_that_is_left_early_gives_its_slot_back(engine: Engine, model: MuOmni) -> None:
    async def leaves_early() -> None:
        running = stream(engine, model, "The cat", 60)
        async for _ in running:
            break
        running.close()
        with pytest.raises(EngineError, match="cancelled before its end"):
            async for _ in running:
                pass
        with pytest.raises(RuntimeError, match="not finished"):
            _ = running.reply

    asyncio.run(leaves_early())
    deadline = time.monotonic() + 10
    while engine.active and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.active


class Event(asyncio.Event):
    """Notes when it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def set(self) -> None:
        self.times.append(time.monotonic())


def test_a_loop_is_woken_once_for_all_and_not_too_often() -> None:
    async def scenario() -> None:
        loop, pulse = asyncio.get_running_loop(), Pulse()
        calls: list[object] = []
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: calls.append(given) or call(*given)  # type: ignore[method-assign]
        events = [Event() for _ in range(8)]
        steps = 20

        def engine() -> None:
            for _ in range(steps):
                for event in events:
                    pulse.update(event, urgent=False)
                time.sleep(0.005)

        await asyncio.to_thread(engine)
        await asyncio.sleep(0.1)
        assert len(calls) < steps / 2 + 2  # one of them is the thread's own
        for event in events:
            gaps = [late - early for early, late in pairwise(dict.fromkeys(event.times))]
            assert len(gaps) >= 2
            assert sum(gap > 0.015 for gap in gaps) >= 2
        before = len(events[0].times)
        pulse.update(events[0], urgent=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(events[0].times) > before  # at once, whatever the beat
        pulse.update(events[1], urgent=False)
        await asyncio.sleep(0.1)
        assert not pulse._due and not pulse._beating

    asyncio.run(scenario())


def test_the_end_comes_with_the_last_text(engine: Engine, model: MuOmni) -> None:
    async def read() -> list[tuple[str, bool]]:
        running = stream(engine, model, "The cat", 1)
        return [(chunk.text, running.ended) async for chunk in running]

    assert [ended for _, ended in asyncio.run(read())] == [True]
