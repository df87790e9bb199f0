"""The engine: continuous batching over the slots of one cache, for any number of threads.

Requests come and go between steps. Nobody needs a thread for it: whoever waits for a request computes steps, for
all requests, until it is served (`wait`); a server starts the one model thread (`start`).

    engine = make_engine(model, slots=16, capacity=1024)
    request = engine.submit(Request(prompt=[1, 2, 3], params=SamplingParams(), limit=20))
    engine.finish(request).tokens
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import torch

from muomni.errors import BusyError, EngineError, PromptError
from muomni.infer.engine.core import NO_GUESS_APART, EngineCore
from muomni.infer.engine.scheduler import Request, Scheduler
from muomni.infer.runners.select import Runner, RunnerName, Runners, make_runner, make_slot_cache
from muomni.infer.sampling import check_biases
from muomni.model import OmniModel, SlotCache

T = TypeVar("T")


class Engine:
    """See the module.

    Args:
        model: in evaluation mode while there is something to do, then as it was before.
        cache: on the model's device; its slots are the engine's alone.
        runners: None takes what `make_runner` makes.
        reuse: begin a prompt where an earlier one that began alike has been computed.
        most_waiting: requests that may wait for a slot.
        chunk, chunk_alone: see `Scheduler`.

    Attributes:
        note: one line for the log: the size of its cache, what it computes with, and what that says of itself.
    """

    def __init__(
        self,
        model: OmniModel,
        cache: SlotCache,
        runners: Runners[Runner] | None = None,
        *,
        reuse: bool = True,
        most_waiting: int = 1024,
        chunk: int = 512,
        chunk_alone: int = 2048,
    ) -> None:
        self.model = model
        self.cache = cache
        self._scheduler = Scheduler(cache.slots, cache.copy, chunk=chunk, chunk_alone=chunk_alone, reuse=reuse)
        runners = make_runner(model, cache) if runners is None else runners
        self._core = EngineCore(model, cache, runners, self._scheduler)
        self._most_waiting = most_waiting
        self._inbox: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lock = threading.RLock()
        self._stepping = False
        self._torn = False  # an exception has come between two changes of the state
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def runner(self) -> Runner:
        """Who computes now."""
        return self._core.runner

    @property
    def steps(self) -> int:
        """How many there have been."""
        return self._core.steps

    @property
    def note(self) -> str:
        """See the class."""
        cache = self.cache
        size = f"{cache.slots} slots of {cache.capacity} tokens in {str(cache.dtype).removeprefix('torch.')}"
        notes = "; ".join(note for note in (self.runner.note, self._core.runners.note) if note)
        runner = f"{type(self.runner).__name__} ({notes})" if notes else type(self.runner).__name__
        return f"KV cache: {size}, {cache.nbytes / 2**30:.3g} GiB; steps by {runner}"

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._inbox) + len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._scheduler.running) + len(self._scheduler.filling)

    @property
    def active(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._inbox) or self._scheduler.active

    @property
    def alive(self) -> bool:
        """Whether the model thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def run(self, job: Callable[[], T]) -> T:
        """Runs what else the model computes on the model thread, between two steps, and returns its result.

        Raises:
            EngineError: the engine is closed.
            what `job` raises.
        """
        if self._thread is None:
            with self._lock:
                return job()
        return self.run_later(job).result()

    def run_later(self, job: Callable[[], T]) -> "Future[T]":
        """As `run`, for who does not wait here; needs `start`."""
        result: Future[T] = Future()
        self._jobs.append((job, result))
        self._core.stop[0] = 1
        self._wake.set()
        if self._closed:
            self._run_jobs()
        return result

    def submit(self, request: Request) -> Request:
        """Lets a request in.

        Raises:
            PromptError: it is empty, holds ids the model does not know, does not fit the cache, or asks for guesses
                or biases that would have no effect.
            BusyError: as many wait as may.
            EngineError: the engine is closed.
        """
        total = len(request.prompt) + request.limit
        V = self.model.config.thinker.vocab_size
        if not request.prompt:
            raise PromptError("the prompt is empty: there is nothing to continue")
        if not 0 <= min(request.prompt) <= max(request.prompt) < V:
            raise PromptError(f"token ids must be whole numbers from 0 to {V - 1}, the model's vocabulary")
        if request.limit < 1 or total > self.cache.capacity:
            raise PromptError(
                f"a prompt of {len(request.prompt)} tokens and a reply of {request.limit} do not fit the "
                f"{self.cache.capacity} tokens of a slot: shorten the prompt or set max_new_tokens lower"
            )
        if request.batch_invariant and request.speculate and not self._core.guesses_deterministic:
            raise PromptError(
                f"{NO_GUESS_APART}, as the steps of {type(self.runner).__name__} round by their size: give one of them"
            )
        check_biases(request.params, V)
        if self._closed:
            raise EngineError("the engine is closed")
        if self.waiting >= self._most_waiting:
            raise BusyError(f"{self._most_waiting} requests are waiting already: try again later")
        if self._thread is not None:
            request.event = threading.Event()
        self._inbox.append(request)
        if self.running < self.cache.slots:
            self._core.stop[0] = 1
        self._wake.set()
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request; its slot is free before the next step. Nothing happens to one that has ended."""
        if request.finished:
            return
        request.cancelled = True
        self._cancelled.append(request)
        self._core.stop[0] = 1
        self._wake.set()
        if self._lock.acquire(blocking=False):
            try:
                if not self._stepping:  # a callback, or the garbage collector, may come here inside a step
                    self._turn(self._take_messages)
            finally:
                self._lock.release()

    def wait(self, request: Request, seen: int = 0) -> None:
        """Returns once `request` has more than `seen` new tokens or is finished; computes steps where nobody does."""
        while len(request.tokens) <= seen and not request.finished:
            event = request.event
            if event is not None and self._thread is not None:
                event.wait(timeout=1.0)  # looks again: the thread may have been closed meanwhile
                event.clear()
            else:
                with self._lock:
                    if len(request.tokens) <= seen and not request.finished:
                        self.step()

    def finish(self, request: Request) -> Request:
        """Waits for the end.

        Raises:
            what the request failed with.
        """
        while not request.finished:
            self.wait(request, len(request.tokens))
        if request.error is not None:
            raise request.error
        return request

    def tokens(self, request: Request) -> Iterator[int]:
        """New tokens as they come; leaving the loop early cancels the request.

        Raises:
            what the request failed with.
        """
        seen = 0
        try:
            while True:
                self.wait(request, seen)
                finished, new = request.finished, request.tokens[seen:]
                yield from new
                seen += len(new)
                if finished and seen == len(request.tokens):
                    break
        finally:
            self.cancel(request)
        if request.error is not None:
            raise request.error

    def start(self) -> Self:
        """Starts the one model thread."""
        if self._closed:
            raise EngineError("the engine is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="muomni-engine", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Ends the thread after its step; requests that have not ended fail with `EngineError`."""
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._run_jobs()
        with self._lock:
            self._turn(self._take_messages)
            self._core.fail_all(EngineError("the engine was closed before this request had ended"))
            self._core.rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            while not self._closed:
                self._wake.clear()
                self._run_jobs(len(self._jobs))  # those that come meanwhile let everybody's step go first
                if not self.step():
                    self._wake.wait()
        finally:
            if not self._closed:  # an error ends the thread: nobody may go on waiting for it
                self.close()

    def _run_jobs(self, most: int | None = None) -> None:
        while self._jobs and most != 0:
            most = None if most is None else most - 1
            job, result = self._jobs.popleft()
            if not result.set_running_or_notify_cancel():  # who wanted it has gone
                continue
            if self._closed:
                result.set_exception(EngineError("the engine was closed before this was computed"))
                continue
            try:
                result.set_result(job())
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                result.set_exception(error)

    def step(self) -> bool:
        """Computes one step for all; False when there was nothing to do."""
        with self._lock:
            return self._turn(self._step)

    def _turn(self, work: Callable[[], T]) -> T:
        """Changes the state; what an exception left half done is mended before the next turn."""
        self._stepping = True
        try:
            if self._torn:
                self._core.mend()
                while self._inbox and (self._inbox[0].finished or self._inbox[0] in self._scheduler.waiting):
                    self._inbox.popleft()
            self._torn = True
            result = work()
            if not self._scheduler.active:
                self._core.rest()
            self._torn = False
            return result
        finally:
            self._stepping = False

    def _step(self) -> bool:
        self._take_messages()
        if not self._scheduler.active:
            return False
        self._core.step()
        return True

    def _take_messages(self) -> None:
        self._core.stop[0] = 0  # what comes from here on sets it again
        if self._jobs:
            self._core.stop[0] = 1
        while self._inbox:
            self._scheduler.add(self._inbox[0])
            self._inbox.popleft()
        while self._cancelled:
            self._core.end(self._cancelled[0])
            self._cancelled.popleft()


def make_engine(
    model: OmniModel,
    *,
    slots: int,
    capacity: int,
    dtype: torch.dtype | None = None,
    share: float = 0.5,
    most_waiting: int = 1024,
    runner: RunnerName | None = None,
) -> Engine:
    """An engine whose cache takes at most `share` of the memory that is free.

    Args:
        model: on its device.
        slots: as many as fit, up to this many.
        capacity: tokens of the longest request, prompt and reply.
        dtype: of the cache; None takes the model's.
        share: of the free memory, 0 to 1.
        most_waiting: see `Engine`.
        runner: see `make_runner`.

    Raises:
        EngineError: not even one slot fits.
    """
    cache = make_slot_cache(
        model.config.thinker,
        slots,
        capacity,
        model.dtype if dtype is None else dtype,
        model.device,
        share,
        f"{capacity} tokens",
        "shorten the prompt, set max_new_tokens lower, or take an int8 cache",
    )
    return Engine(model, cache, make_runner(model, cache, runner), most_waiting=most_waiting)
