"""Whose speech the model thread computes next: of those who wait for a turn, who is nearest to having nothing to play.

First of all come those who have heard nothing yet, in their order: a first piece is small.
One turn at a time is among the thread's jobs, so that between two of them everybody's text takes a step: neither waits
for all of the other.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from torch import Tensor


class Speaks(Protocol):
    """The speech of one text; see `TextSpeech`."""

    @property
    def lead(self) -> float:
        """Seconds until who listens has nothing to play; below 0 it waits for so long, -inf for the first sound."""

    def work(self) -> Tensor | None:
        """One turn of computing."""


class SpeechTurns:
    """See the module.

    Args:
        run_later: lets the model thread compute something; see `Engine.run_later`.
    """

    def __init__(self, run_later: Callable[[Callable[[], None]], "Future[None]"]) -> None:
        self._run_later = run_later
        self._waiting: list[tuple[Speaks, Future[Tensor | None]]] = []
        self._asked = False  # a turn is among the jobs
        self._lock = threading.Lock()

    def take(self, speech: Speaks) -> "Future[Tensor | None]":
        """The result of the speech's next turn; cancelled, it gives the turn to others."""
        result: Future[Tensor | None] = Future()
        with self._lock:
            self._waiting.append((speech, result))
        self._ask()
        return result

    def _ask(self) -> None:
        with self._lock:
            if self._asked or not self._waiting:
                return
            self._asked = True
        self._run_later(self._turn).add_done_callback(self._after)

    def _turn(self) -> None:
        """On the model thread."""
        with self._lock:
            self._waiting = [each for each in self._waiting if not each[1].cancelled()]
            chosen = min(self._waiting, key=lambda each: each[0].lead, default=None)
            if chosen is not None:
                self._waiting.remove(chosen)
        if chosen is None or not chosen[1].set_running_or_notify_cancel():
            return
        try:
            chosen[1].set_result(chosen[0].work())
        except Exception as error:  # noqa: BLE001 - raised where the turn is waited for
            chosen[1].set_exception(error)

    def _after(self, job: "Future[Any]") -> None:
        """Asks for the next turn; where the engine has been closed, nobody gets one."""
        error = job.exception()
        with self._lock:
            self._asked = False
            lost, self._waiting = (self._waiting, []) if error is not None else ([], self._waiting)
        for _, result in lost:
            if result.set_running_or_notify_cancel():
                result.set_exception(error)
        self._ask()
