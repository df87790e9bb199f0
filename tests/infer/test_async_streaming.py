"""Replies in an event loop: many at once, and one that is left early."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muomni import MuOmni
from muomni.errors import EngineError
from muomni.infer import Engine, SamplingParams
from muomni.infer.async_streaming import AsyncTextStream
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
    return AsyncTextStream(engine, model.tokenizer, EngineInput(model.tokenizer.encode(text), params, count))


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
