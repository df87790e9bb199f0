"""The engine's front and its manners: threads, cancellation, order, errors that stay where they belong."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import BusyError, EngineError, PromptError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, generate, make_engine
from muomni.model import OmniModel, SlotCache

CONTEXT = 64
GREEDY = SamplingParams(temperature=0, max_new_tokens=6)


def make_model(seed: int = 0, **changes: Any) -> OmniModel:
    sizes: dict[str, Any] = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.4,
    }
    return OmniModel(OmniConfig(thinker=ThinkerConfig(**(sizes | changes))), torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def model() -> OmniModel:
    return make_model()


def new_engine(model: OmniModel, slots: int = 3, wrap: Callable[..., Any] = EagerRunner, **options: Any) -> Engine:
    cache = SlotCache(model.config.thinker, slots, CONTEXT)
    return Engine(model, cache, Runners(wrap(model, cache)), **options)


def ask(prompt: Sequence[int], params: SamplingParams = GREEDY, **options: Any) -> Request:
    return Request(prompt=list(prompt), params=params, limit=params.max_new_tokens, **options)


def alone(model: OmniModel, prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
    return generate(model, torch.tensor([list(prompt)]), params, use_cache=False)[0].tolist()


def test_requests_get_slots_in_the_order_they_came(model: OmniModel) -> None:
    engine = new_engine(model, slots=2)
    requests = [engine.submit(ask([i, 1])) for i in range(5)]
    started: list[int] = []
    while engine.active:
        engine.step()
        started += [i for i, one in enumerate(requests) if one.tokens and i not in started]
    assert started == [0, 1, 2, 3, 4]


def test_a_short_prompt_does_not_wait_for_a_long_one_to_be_read(model: OmniModel) -> None:
    engine = new_engine(model, chunk=8, chunk_alone=8)
    long, short = engine.submit(ask(range(28), GREEDY)), engine.submit(ask([5, 6]))
    engine.step()
    assert short.tokens and not long.tokens
    assert engine.finish(long).tokens == alone(model, range(28))


class Interrupted(EagerRunner):
    """Something happens in the first step of each call of `greedy`; `sizes` are the steps that were taken."""

    can_greedy = True
    happens: Callable[[], object]
    sizes: list[int]

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        assert stop is not None and not stop[0]
        self.happens()
        new = super().greedy(tokens, slots, positions, steps, stop)
        self.sizes.append(new.shape[1])
        return new


@pytest.mark.parametrize(
    ("slots", "what", "size"),
    [(2, "submit", 1), (1, "submit", 10), (2, "cancel", 1), (2, "job", 1), (2, "nothing", 10)],
)
def test_a_call_of_several_steps_ends_for_who_comes_or_goes(model: OmniModel, slots: int, what: str, size: int) -> None:
    engine = new_engine(model, slots=slots, wrap=Interrupted)
    runner = engine.runner
    assert isinstance(runner, Interrupted)
    params = SamplingParams(temperature=0, max_new_tokens=11)
    gone = ask([5, 6], params)
    happens: dict[str, Callable[[], object]] = {
        "submit": lambda: engine.submit(ask([7])),
        "cancel": lambda: engine.cancel(gone),
        "job": lambda: engine.run_later(lambda: None),
        "nothing": lambda: None,
    }
    runner.sizes, runner.happens = [], happens[what]
    request = engine.submit(ask([1, 2, 3], params))
    if what == "cancel":
        engine.submit(gone)
    engine.step()
    engine._core._step_s = 1e-4  # a call may take all steps that there are
    engine.step()
    assert runner.sizes == [size]
    assert len(request.tokens) == 1 + size


@pytest.mark.parametrize("when", ["waiting", "reading", "running", "ended"])
def test_a_cancelled_request_gives_its_slot_back_at_once(model: OmniModel, when: str) -> None:
    engine = new_engine(model, slots=1, chunk=4, chunk_alone=4)
    if when == "waiting":
        engine.submit(ask([9]))
    one = engine.submit(ask(range(10)))
    steps = {"waiting": 1, "reading": 1, "running": 5, "ended": 20}[when]
    for _ in range(steps):
        engine.step()
    got = list(one.tokens)
    assert bool(got) == (when in ("running", "ended"))
    engine.cancel(one)
    assert one.finished and one.tokens == got and (one.reason is None) == (when != "ended")
    after = engine.submit(ask([3, 4, 5]))
    assert engine.finish(after).tokens == alone(model, [3, 4, 5])
    engine.cancel(one)  # again: nothing happens
    assert one.tokens == got and not engine.active


def test_leaving_a_loop_over_tokens_cancels(model: OmniModel) -> None:
    engine = new_engine(model)
    one = engine.submit(ask([1, 2]))
    for token in engine.tokens(one):
        assert token == one.tokens[0]
        break
    assert one.finished and not engine.active
    assert list(engine.tokens(engine.submit(ask([1, 2])))) == alone(model, [1, 2])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([30], GREEDY, "from 0 to 29"),
        ([-1], GREEDY, "from 0 to 29"),
        ([1] * 60, GREEDY, "a prompt of 60 tokens and a reply of 6 do not fit the 64 tokens of a slot"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_door(
    model: OmniModel, prompt: list[int], params: SamplingParams, message: str
) -> None:
    engine = new_engine(model)
    running = engine.submit(ask([1, 2]))
    with pytest.raises(PromptError, match=message):
        engine.submit(ask(prompt, params))
    assert engine.finish(running).tokens == alone(model, [1, 2])


def test_the_queue_is_bounded(model: OmniModel) -> None:
    engine = new_engine(model, slots=1, most_waiting=2)
    requests = [engine.submit(ask([i])) for i in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting already"):
        engine.submit(ask([3]))
    engine.step()  # one has a slot now
    requests.append(engine.submit(ask([3])))
    assert [engine.finish(one).tokens for one in requests] == [alone(model, [i]) for i in (0, 1, 3)]


class Boom(RuntimeError):
    pass


def fail(*_: Any) -> Any:
    raise Boom("expected")


class Picky(EagerRunner):
    """Fails where token 13 is in the batch."""

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        if 13 in tokens.tolist():
            raise Boom("expected")
        return super().forward(tokens, slots, positions, wanted)


def count_to(limit: int) -> Callable[[int], bool]:
    calls = iter(range(limit))

    def watch(_: int) -> bool:
        if next(calls, None) is None:
            raise Boom("expected")
        return False

    return watch


@pytest.mark.parametrize(
    "broken",
    [
        lambda: ask([2], on_token=fail),
        lambda: ask([2], on_token=count_to(3)),
        lambda: ask([2], on_update=fail),
        lambda: ask([2, 13]),
        lambda: ask([13] * 20, SamplingParams(max_new_tokens=3)),
        lambda: ask([2], SamplingParams(max_new_tokens=5, seed=1), on_token=fail),
    ],
)
def test_an_error_in_one_request_stays_there(model: OmniModel, broken: Callable[[], Request]) -> None:
    engine = new_engine(model, slots=4, wrap=Picky)
    good = [i for i in range(12) if 13 not in alone(model, [i])][:6]
    assert len(good) >= 3
    requests = [engine.submit(ask([i])) for i in good]
    requests.insert(2, bad := engine.submit(broken()))
    for one in requests:
        if one is not bad:
            assert engine.finish(one).tokens == alone(model, one.prompt)
    with pytest.raises(Boom):
        engine.finish(bad)
    assert engine.finish(engine.submit(ask([good[0]]))).tokens == alone(model, [good[0]])
    assert not engine.active


def test_a_sampling_error_of_one_row_stays_there(model: OmniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.infer import sampling

    draw = sampling._draw

    def picky(logits: Tensor, group: Any, uniform: Tensor) -> Tensor:
        if group.top_k == 7:
            raise Boom("expected")
        return draw(logits, group, uniform)

    params = [SamplingParams(seed=i, top_k=k, max_new_tokens=5) for i, k in enumerate((5, 7, 5))]
    expected = [alone(model, [4], p) for p in params]
    monkeypatch.setattr(sampling, "_draw", picky)
    engine = new_engine(model)
    requests = [engine.submit(ask([4], p)) for p in params]
    assert engine.finish(requests[0]).tokens == expected[0] and engine.finish(requests[2]).tokens == expected[2]
    with pytest.raises(Boom):
        engine.finish(requests[1])


def test_a_step_that_fails_for_all_fails_them_and_the_engine_answers_afterwards(
    model: OmniModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(model)
    requests = [engine.submit(ask([i])) for i in range(5)]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr("muomni.infer.engine.core.EngineCore._deliver", fail)
        engine.step()
    for one in requests:
        with pytest.raises(Boom):
            engine.finish(one)
    assert engine.finish(engine.submit(ask([7]))).tokens == alone(model, [7])


def test_ctrl_c_in_a_step_loses_nothing(model: OmniModel) -> None:
    class Interrupted(EagerRunner):
        calls = 0

        def forward(self, *args: Any) -> Tensor:
            out = super().forward(*args)
            self.calls += 1
            if self.calls % 3 == 2:
                raise KeyboardInterrupt
            return out

    engine = new_engine(model, wrap=Interrupted)
    requests = [engine.submit(ask([i])) for i in range(3)]
    interrupted = 0
    while engine.active:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted > 1
    assert [one.tokens for one in requests] == [alone(model, [i]) for i in range(3)]


def test_many_threads_are_served_by_one(model: OmniModel) -> None:
    asked = [([i % 30, i % 7], SamplingParams(seed=i, max_new_tokens=4 + i % 5)) for i in range(24)]
    expected = [alone(model, *pair) for pair in asked]
    for started in (True, False):  # with the engine's thread, and with those who wait taking turns
        engine = new_engine(model)
        if started:
            engine.start()
        got: dict[int, list[int]] = {}

        def user(number: int, engine: Engine = engine, got: dict[int, list[int]] = got) -> None:
            for i in range(number, 24, 8):
                got[i] = list(engine.tokens(engine.submit(ask(*asked[i]))))

        threads = [threading.Thread(target=user, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [got[i] for i in range(24)] == expected
        engine.close()


def test_closing_ends_the_thread_and_fails_who_waits(model: OmniModel) -> None:
    slow = threading.Event()

    class Slow(EagerRunner):
        def forward(self, *args: Any) -> Tensor:
            slow.wait(0.05)
            return super().forward(*args)

    engine = new_engine(model, wrap=Slow).start()
    requests = [engine.submit(ask([i], SamplingParams(temperature=0, max_new_tokens=60))) for i in range(5)]
    engine.wait(requests[0])
    engine.close()
    assert not any(thread.name == "muomni-engine" for thread in threading.enumerate())
    for one in requests:
        with pytest.raises(EngineError, match="closed"):
            engine.finish(one)
    for call in (lambda: engine.submit(ask([1])), engine.start):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_the_models_mode_is_that_of_before_once_nothing_is_left_to_do() -> None:
    model = make_model(dropout=0.5)
    expected = alone(model, [1])
    model.train()
    engine = new_engine(model)
    one = engine.submit(ask([1]))
    engine.step()
    assert not model.training
    assert engine.finish(one).tokens == expected and model.training
    engine.submit(other := ask([2]))
    engine.step()
    engine.cancel(other)
    assert model.training


def test_the_cache_takes_what_memory_allows_and_says_so(model: OmniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    each = 2 * 2 * 1 * 64 * 8 * 4  # keys and values, layers, heads, tokens, head size, bytes
    monkeypatch.setattr("muomni.infer.runners.select.free_memory", lambda _: 10 * each)
    engine = make_engine(model, slots=16, capacity=64)
    assert engine.cache.slots == 5 and engine.cache.nbytes == 5 * each
    assert "5 slots of 64 tokens in float32" in engine.note and "EagerRunner" in engine.note
    assert make_engine(model, slots=16, capacity=64, dtype=torch.int8).cache.slots == 13
    monkeypatch.setattr("muomni.infer.runners.select.free_memory", lambda _: each)
    with pytest.raises(EngineError, match="the KV cache of 64 tokens takes .* GiB are free: shorten the prompt"):
        make_engine(model, slots=16, capacity=64)


@pytest.mark.parametrize(("slots", "capacity"), [(0, 4), (4, 0)])
def test_a_cache_without_room_is_refused(model: OmniModel, slots: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="needs room"):
        SlotCache(model.config.thinker, slots, capacity)


def test_a_batch_that_does_not_fit_the_cache_is_refused(model: OmniModel) -> None:
    cache = SlotCache(model.config.thinker, 2, 8)
    runner = EagerRunner(model, cache)
    for slot, position in ((2, 0), (-1, 0), (0, 8), (0, -1)):
        one = torch.tensor([1])
        with pytest.raises(ValueError, match="does not fit 2 slots of 8 tokens"):
            runner.forward(one, torch.tensor([slot]), torch.tensor([position]), torch.tensor([0]))
    with pytest.raises(ValueError, match="float type or int8"):
        SlotCache(model.config.thinker, 1, 8, torch.int32)


class Schedules(RuleBasedStateMachine):
    """Any order of arrivals, steps, cancellations and ends, against one request at a time without a cache."""

    ours = make_model(3)
    known: dict[tuple[tuple[int, ...], SamplingParams], list[int]] = {}  # noqa: RUF012 - what was computed once
    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.engine = new_engine(self.ours, slots=3, chunk=16, chunk_alone=24, most_waiting=4)
        self.requests: list[Request] = []
        self.cancelled: set[int] = set()

    @rule(
        target=open,
        beginning=st.integers(0, 1),
        common=st.sampled_from([0, 16, 20, 33]),
        rest=st.lists(st.integers(0, 29), min_size=1, max_size=12),
        count=st.integers(1, 16),
        temperature=st.sampled_from([0, 0, 1.0]),
        penalty=st.sampled_from([1.0, 1.5]),
        seed=st.integers(0, 2),
        end=st.sampled_from([None, 3, 11]),
        stop_at=st.sampled_from([None, 2, 7]),
        batch_invariant=st.booleans(),
    )
    def arrive(
        self,
        beginning: int,
        common: int,
        rest: list[int],
        count: int,
        temperature: float,
        penalty: float,
        seed: int,
        end: int | None,
        stop_at: int | None,
        batch_invariant: bool,
    ) -> Any:
        prompt = [(i * 7 + beginning * 5) % 30 for i in range(common)] + rest
        params = SamplingParams(
            max_new_tokens=count,
            temperature=temperature,
            repetition_penalty=penalty,
            presence_penalty=penalty - 1,
            frequency_penalty=0.7 * (seed == 1),
            logit_bias={5: -100, 7: 1.5} if seed == 2 else {},
            seed=seed,
            top_k=9,
        )
        one = ask(
            prompt,
            params,
            ends=frozenset() if end is None else frozenset({end}),
            on_token=None if stop_at is None else (lambda token: token == stop_at),
            batch_invariant=batch_invariant,
        )
        try:
            self.engine.submit(one)
        except BusyError:
            assert self.engine.waiting == 4
            return multiple()
        self.requests.append(one)
        one.row = 0
        self.stop_tokens = getattr(self, "stop_tokens", {}) | {id(one): {end, stop_at} - {None}}
        return one

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(one=consumes(open))
    def cancel(self, one: Request) -> None:
        if not one.finished:
            self.cancelled.add(id(one))
        self.engine.cancel(one)
        assert one.finished and one.slot == -1

    @rule(one=consumes(open))
    def wait(self, one: Request) -> None:
        self.engine.finish(one)

    @invariant()
    def what_came_out_is_what_comes_out_alone(self) -> None:
        used = [one.slot for one in self.requests if one.slot >= 0]
        assert len(used) == len(set(used)) <= 3
        for one in self.requests:
            expected = self.expected(one)
            if one.reason is None:
                assert one.error is None and one.tokens == expected[: len(one.tokens)]
                assert one.finished == (id(one) in self.cancelled)
            else:
                assert one.tokens == expected
        self.requests = [one for one in self.requests if not one.finished]

    def expected(self, one: Request) -> list[int]:
        key = tuple(one.prompt), one.params
        if key not in self.known:
            self.known[key] = alone(self.ours, *key)
        whole = self.known[key]
        last = next((i for i, token in enumerate(whole) if token in self.stop_tokens[id(one)]), len(whole) - 1)
        return whole[: last + 1]

    def teardown(self) -> None:
        while self.engine.active:
            self.engine.step()
        assert all(one.finished and one.error is None for one in self.requests)
        self.what_came_out_is_what_comes_out_alone()
        assert self.engine._scheduler._slots.free == 3


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=40, stateful_step_count=25)
