"""Turns of speech by a clock of our own: who is nearest to an underrun goes first, and text goes on meanwhile."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from muomni.errors import EngineError
from muomni.infer.speech import AHEAD_S
from muomni.serve.speech import _until_none
from muomni.serve.turns import SpeechTurns
from tests.serve.conftest import run

TURN_S, STEP_S, PIECE_S = 0.04, 0.005, 0.4


@dataclass
class Thread:
    """A model thread whose time is counted, not spent: jobs that are there, then a step of text."""

    now: float = 0.0
    steps: int = 0
    jobs: deque[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=deque)

    def run_later(self, job: Callable[[], Any]) -> Future[Any]:
        result: Future[Any] = Future()
        self.jobs.append((job, result))
        return result

    def round(self) -> None:
        for _ in range(len(self.jobs)):
            job, result = self.jobs.popleft()
            result.set_result(job())
        self.steps += 1
        self.now += STEP_S


@dataclass
class Listener:
    thread: Thread
    first: float | None = None
    heard: float = 0.0
    worst: float = 0.0

    @property
    def lead(self) -> float:
        return -math.inf if self.first is None else self.heard - (self.thread.now - self.first)

    def work(self) -> Tensor | None:
        self.thread.now += TURN_S
        self.first = self.thread.now if self.first is None else self.first
        self.worst = min(self.worst, self.lead)
        self.heard += PIECE_S
        return torch.zeros(1)


def test_eight_listeners_are_served_in_the_order_of_need_and_text_goes_on() -> None:
    thread = Thread()
    turns = SpeechTurns(thread.run_later)
    listeners = [Listener(thread) for _ in range(8)]
    pending: dict[int, Future[Tensor | None]] = {}
    taken = 0
    while thread.now < 20:
        for number, listener in enumerate(listeners):
            if (number not in pending or pending[number].done()) and listener.lead <= AHEAD_S:
                taken += 1
                pending[number] = turns.take(listener)
        thread.round()
    assert all(listener.worst >= -1e-9 for listener in listeners)  # nobody's playback runs dry
    assert thread.steps >= taken - 8
    first = [listener.first for listener in listeners if listener.first is not None]
    assert max(first) < 8 * (TURN_S + STEP_S) + STEP_S
    leads = [listener.lead for listener in listeners]
    assert max(leads) - min(leads) < PIECE_S + 8 * (TURN_S + STEP_S)


def test_who_is_nearest_to_an_underrun_goes_first() -> None:
    thread = Thread()
    turns = SpeechTurns(thread.run_later)
    leads = [0.9, 0.1, 0.5, -9.0, 0.7]
    listeners = [Listener(thread, first=0.0, heard=lead) for lead in leads]
    listeners += [Listener(thread), Listener(thread)]  # have heard nothing yet
    results = [turns.take(listener) for listener in listeners]
    results[2].cancel()
    order: list[int] = []
    for number, result in enumerate(results):
        result.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    order.clear()
    for _ in listeners:
        thread.round()
    assert order == [5, 6, 3, 1, 4, 0]


def test_a_speech_that_fails_hurts_nobody_and_an_engine_that_ends_is_told() -> None:
    thread = Thread()
    turns = SpeechTurns(thread.run_later)

    class Broken(Listener):
        def work(self) -> Tensor | None:
            raise ValueError("no")

    broken, whole = turns.take(Broken(thread)), turns.take(Listener(thread))
    thread.round()
    thread.round()
    assert isinstance(broken.exception(0), ValueError)
    assert whole.result(0) is not None
    lost = [turns.take(Listener(thread)) for _ in range(3)]
    thread.jobs.popleft()[1].set_exception(EngineError("closed"))
    assert all(isinstance(result.exception(0), EngineError) for result in lost)
    assert not thread.jobs


@pytest.mark.parametrize("cut", [0, 1, 2, 4])
def test_texts_that_wait_are_taken_together(cut: int) -> None:
    async def read() -> list[str]:
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        texts = ["a", "b", "c", None]
        for text in texts[:cut]:
            queue.put_nowait(text)
        found = []
        reader = _until_none(queue)
        if cut:
            found.append(await anext(reader))
        for text in texts[cut:]:
            queue.put_nowait(text)
        return [*found, *[text async for text in reader]]

    found = run(read())
    assert "".join(found) == "abc"
    assert len(found) <= 2
