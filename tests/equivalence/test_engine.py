"""The engine changes the time, not the answer: every way through it gives the tokens of `generate` without a cache.

Class *exact* for tokens in fp32.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import ConfigError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, generate, make_runner
from muomni.model import OmniModel, SlotCache

CONTEXT = 96


@st.composite
def models(draw: st.DrawFn) -> OmniModel:
    keys = draw(st.sampled_from([1, 2]))
    return make_model(
        draw(st.integers(0, 999)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=keys * draw(st.sampled_from([1, 3])),
        num_key_value_heads=keys,
        head_dim=draw(st.sampled_from([4, 8])),
        tie_word_embeddings=draw(st.booleans()),
    )


def make_model(seed: int = 0, **changes: Any) -> OmniModel:
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
    }
    thinker = ThinkerConfig(**(sizes | changes))
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(seed)).eval()


def make_engine(model: OmniModel, slots: int = 4, **options: Any) -> Engine:
    return Engine(model, SlotCache(model.config.thinker, slots, CONTEXT, model.dtype), **options)


sampling = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 16),
    temperature=st.sampled_from([0, 0, 0.5, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.02]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.6]),
    presence_penalty=st.sampled_from([0.0, 0.0, -0.4]),
    logit_bias=st.sampled_from([{}, {}, {3: -100, 11: 1.5}]),
    seed=st.integers(0, 999),
)


def ids_of(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(40) for _ in range(length)]


# Few beginnings, so that many prompts begin alike.
prompts = st.builds(
    lambda beginning, common, rest, length: ids_of(beginning, 50)[:common] + ids_of(rest, length),
    st.integers(0, 1),
    st.sampled_from([0, 0, 16, 17, 31, 48]),
    st.integers(0, 99),
    st.integers(1, 30),
)

_known: dict[Any, list[int]] = {}


def alone(model: OmniModel, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The oracle: one prompt, one step at a time, from the first token on each time."""
    return generate(model, torch.tensor([list(prompt)]), params, use_cache=False)[0].tolist()


def request(prompt: Sequence[int], params: SamplingParams, **options: Any) -> Request:
    return Request(prompt=list(prompt), params=params, limit=params.max_new_tokens, **options)


@settings(max_examples=40)
@given(models(), st.lists(st.tuples(prompts, sampling), min_size=1, max_size=6), st.integers(1, 5))
def test_together_is_alone(model: OmniModel, asked: list[tuple[list[int], SamplingParams]], slots: int) -> None:
    engine = make_engine(model, slots)
    requests = [engine.submit(request(*pair)) for pair in asked]
    for one, pair in zip(requests, asked, strict=True):
        assert engine.finish(one).tokens == alone(model, *pair)
    assert not engine.active


@settings(max_examples=30)
@given(models(), prompts, st.integers(1, 60), st.integers(0, 30))
def test_a_prompt_in_chunks_is_the_whole_prompt(model: OmniModel, prompt: list[int], chunk: int, others: int) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=8)
    engine = make_engine(model, chunk=chunk, chunk_alone=chunk)
    busy = [engine.submit(request(ids_of(i, 3), SamplingParams(temperature=0, max_new_tokens=30))) for i in range(2)]
    for _ in range(others):
        engine.step()
    assert engine.finish(engine.submit(request(prompt, params))).tokens == alone(model, prompt, params)
    for i, one in enumerate(busy):
        assert engine.finish(one).tokens == alone(model, ids_of(i, 3), one.params)


@settings(max_examples=30)
@given(models(), st.lists(st.tuples(prompts, sampling), min_size=2, max_size=6), st.integers(1, 4))
def test_a_prompt_that_begins_like_an_earlier_one_is_read_from_there_with_the_same_result(
    model: OmniModel, asked: list[tuple[list[int], SamplingParams]], slots: int
) -> None:
    engine = make_engine(model, slots)
    for prompt, params in asked:
        assert engine.finish(engine.submit(request(prompt, params))).tokens == alone(model, prompt, params)


def test_what_is_reused_is_not_computed_again_and_the_last_token_always_is() -> None:
    model = make_model()
    params = SamplingParams(temperature=0, max_new_tokens=5)
    prompt = ids_of(1, 40)
    fed: list[int] = []

    class Spy(EagerRunner):
        def forward(self, tokens: Tensor, *rest: Any) -> Tensor:
            fed.append(len(tokens))
            return super().forward(tokens, *rest)

    cache = SlotCache(model.config.thinker, 3, CONTEXT)
    engine = Engine(model, cache, Runners(Spy(model, cache)))
    first = engine.finish(engine.submit(request(prompt, params))).tokens
    assert fed == [40, 1, 1, 1, 1]
    cases = [
        (prompt, 39),  # the same: all but the last token
        ([*prompt, *first, 1, 2], 44),  # a conversation that goes on: the reply's last token was never computed
        (prompt[:20], 19),
        ([*prompt[:35], 0, 0], 35),  # the tokens decide, not whole blocks
        ([*prompt[:15], 39, 1, 2], 0),  # less than a block
    ]
    for again, reused in cases:
        fed.clear()
        one = engine.finish(engine.submit(request(again, params)))
        assert one.reused == reused and fed[0] == len(again) - reused
        assert one.tokens == alone(model, again, params)


def test_prompts_that_arrive_together_read_their_common_beginning_once() -> None:
    model = make_model()
    params = SamplingParams(temperature=0, max_new_tokens=4)
    asked = [ids_of(1, 48) + ids_of(9 + i, 5) for i in range(4)]
    engine = make_engine(model)
    requests = [engine.submit(request(prompt, params)) for prompt in asked]
    for one, prompt in zip(requests, asked, strict=True):
        assert engine.finish(one).tokens == alone(model, prompt, params)
    assert [one.reused for one in requests] == [0, 48, 48, 48]


def needle(model: OmniModel, engine: Engine, seed: int) -> list[int]:
    """One prompt among random fillers, at a random place of the queue: its tokens."""
    source = random.Random(seed)
    prompt, params = ids_of(7, 20), SamplingParams(temperature=0, max_new_tokens=12)
    fillers = [(ids_of(source.randrange(99), source.randrange(1, 60)), source.randrange(1, 20)) for _ in range(9)]
    asked = [request(ids, SamplingParams(max_new_tokens=count, seed=count)) for ids, count in fillers]
    wanted = request(prompt, params)
    asked.insert(source.randrange(10), wanted)
    for one in asked:
        engine.submit(one)
        if source.random() < 0.5:
            engine.step()
    return engine.finish(wanted).tokens


class OffByOne(EagerRunner):
    """Reads a neighbour's slot: a bug of the kind the needle must find."""

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        wrong = slots.clone()
        if len(tokens) > 1 and len(wanted) > 1:
            wrong[-1] = (slots[-1] + 1) % self._cache.slots
        return super().forward(tokens, wrong, positions, wanted)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_a_needle_among_fillers_has_its_own_tokens(slots: int) -> None:
    model = make_model()
    expected = alone(model, ids_of(7, 20), SamplingParams(temperature=0, max_new_tokens=12))
    for seed in range(10):
        assert needle(model, make_engine(model, slots, chunk=24), seed) == expected


def test_the_needle_finds_a_runner_that_mixes_slots_up() -> None:
    model = make_model()
    expected = alone(model, ids_of(7, 20), SamplingParams(temperature=0, max_new_tokens=12))
    found = []
    for seed in range(10):
        cache = SlotCache(model.config.thinker, 8, CONTEXT)
        cache.keys.zero_(), cache.values.zero_()
        found.append(needle(model, Engine(model, cache, Runners(OffByOne(model, cache))), seed) != expected)
    assert sum(found) >= 5


class Several(EagerRunner):
    """Takes several greedy steps in one call."""

    can_greedy = True
    calls = 0

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        type(self).calls += 1
        return super().greedy(tokens, slots, positions, steps, stop)


@settings(max_examples=30)
@given(models(), st.lists(st.tuples(prompts, st.integers(1, 30), st.integers(0, 39)), min_size=1, max_size=5))
def test_several_steps_in_one_call_give_the_same_tokens(
    model: OmniModel, asked: list[tuple[list[int], int, int]]
) -> None:
    cache = SlotCache(model.config.thinker, 3, CONTEXT)
    engine = Engine(model, cache, Runners(Several(model, cache)))
    requests = []
    for prompt, count, end in asked:
        params = SamplingParams(temperature=0, max_new_tokens=min(count, CONTEXT - len(prompt)))
        requests.append(engine.submit(request(prompt, params, ends=frozenset({end}))))
    for one, (prompt, _, end) in zip(requests, asked, strict=True):
        whole = alone(model, prompt, one.params)
        expected = whole[: whole.index(end) + 1] if end in whole else whole
        assert engine.finish(one).tokens == expected
        assert one.reason == ("stop" if end in whole else "length")


def test_several_steps_are_taken_where_a_runner_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.infer.engine.core._LONGEST_CALL_S", 10.0)
    model = make_model()
    cache = SlotCache(model.config.thinker, 3, CONTEXT)
    Several.calls = 0
    engine = Engine(model, cache, Runners(Several(model, cache)))
    monkeypatch.setattr("muomni.infer.engine.core._MOST_STEPS", 8)
    params = SamplingParams(temperature=0, max_new_tokens=34)
    assert engine.finish(engine.submit(request([1, 2], params))).tokens == alone(model, [1, 2], params)
    assert Several.calls == 5 and engine.steps == 6  # the prompt with the first token, four times eight, and one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_deterministic_requests_do_not_depend_on_the_others_bit_by_bit(dtype: torch.dtype, temperature: float) -> None:
    model = make_model(num_hidden_layers=3).to(dtype)
    logits: list[Tensor] = []
    runs = []
    for slots in (1, 5):
        cache = SlotCache(model.config.thinker, slots, CONTEXT, dtype)

        class Spy(EagerRunner):
            def forward(self, tokens: Tensor, of: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
                out = super().forward(tokens, of, positions, wanted)
                logits.append(out)
                return out

        logits.clear()
        engine = Engine(model, cache, Runners(Spy(model, cache)))
        requests = []
        for i in range(5):
            params = SamplingParams(temperature=temperature, max_new_tokens=10, seed=i)
            requests.append(engine.submit(request(ids_of(i % 2, 30), params, batch_invariant=True)))
        tokens = [engine.finish(one).tokens for one in requests]
        rows = torch.cat(logits)
        runs.append((tokens, rows[rows.sum(-1).argsort(stable=True)]))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_runner_that_comes_later_is_taken_between_two_steps_and_changes_no_token() -> None:
    from concurrent.futures import Future

    model = make_model()
    params = SamplingParams(temperature=0, max_new_tokens=20)
    cache = SlotCache(model.config.thinker, 4, CONTEXT)
    later: Future[Any] = Future()
    engine = Engine(model, cache, Runners(EagerRunner(model, cache), later))
    requests = [engine.submit(request(ids_of(i, 10 + i), params)) for i in range(3)]
    for _ in range(5):
        engine.step()
    faster = EagerRunner(model, cache)
    later.set_result(faster)
    first = engine.runner
    assert first is not faster
    engine.step()
    assert engine.runner is faster
    for i, one in enumerate(requests):
        assert engine.finish(one).tokens == alone(model, ids_of(i, 10 + i), params)


def test_a_faster_runner_that_cannot_be_made_is_told_and_the_first_goes_on() -> None:
    from concurrent.futures import Future

    model = make_model()
    cache = SlotCache(model.config.thinker, 1, CONTEXT)
    later: Future[Any] = Future()
    later.set_exception(OSError("no compiler"))
    engine = Engine(model, cache, Runners(EagerRunner(model, cache), later))
    params = SamplingParams(temperature=0, max_new_tokens=3)
    assert engine.finish(engine.submit(request([1], params))).tokens == alone(model, [1], params)
    assert "no compiler" in engine.note


def test_an_int8_cache_is_close_and_a_quarter_of_the_size() -> None:
    model = make_model(num_hidden_layers=3, head_dim=64)
    thinker = model.config.thinker
    ids = torch.tensor(ids_of(3, 60))
    logits = {}
    for dtype in (torch.float32, torch.int8):
        cache = SlotCache(thinker, 2, CONTEXT, dtype)
        with torch.inference_mode():
            runner = EagerRunner(model, cache)
            for begin, end in ((0, 30), (30, 31), (31, 60)):
                positions = torch.arange(begin, end)
                out = runner.forward(ids[begin:end], torch.ones_like(positions), positions, positions - begin)
        logits[dtype] = (out, cache.nbytes)
    (full, size), (small, bytes_) = logits.values()
    assert bytes_ / size == pytest.approx((64 + 4) / 256)
    divergence = (full.log_softmax(-1).exp() * (full.log_softmax(-1) - small.log_softmax(-1))).sum(-1)
    assert 0 < divergence.mean() < 1e-3
    assert (full.argmax(-1) == small.argmax(-1)).float().mean() > 0.9


def test_the_native_runner_takes_over_between_two_steps_and_changes_no_token() -> None:
    from concurrent.futures import Future

    from muomni.infer.runners.native import make_native_runner
    from muomni.ops.native import Unavailable

    model = make_model(num_hidden_layers=3)
    cache = SlotCache(model.config.thinker, 4, CONTEXT)
    native = make_native_runner(model, cache, threads=1)
    if isinstance(native, Unavailable):
        pytest.skip(native.reason)
    for steps in (0, 1, 7):
        later: Future[Any] = Future()
        engine = Engine(model, cache, Runners(EagerRunner(model, cache), later), chunk=8, chunk_alone=8)
        asked = [(ids_of(i, 5 + 7 * i), SamplingParams(temperature=i % 2, seed=i, max_new_tokens=20)) for i in range(6)]
        requests = [engine.submit(request(*pair)) for pair in asked]
        for _ in range(steps):
            engine.step()
        later.set_result(native)
        for one, pair in zip(requests, asked, strict=True):
            assert engine.finish(one).tokens == alone(model, *pair)
        assert engine.runner is native


def test_a_runner_that_is_named_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    cache = SlotCache(model.config.thinker, 1, 8, torch.int8)
    assert isinstance(make_runner(model, cache, "eager").now, EagerRunner)
    with pytest.raises(ConfigError, match="runner = 'fast': there are auto, eager, native, compiled"):
        make_runner(model, cache, "fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the native runner cannot be had: a cache of torch.int8"):
        make_runner(model, cache, "native")
    auto = make_runner(model, cache, "auto")
    assert isinstance(auto.now, EagerRunner) and auto.later is None and "torch.int8" in auto.note
    monkeypatch.setattr("muomni.infer.runners.select.DEFAULT_RUNNER", "native")
    with pytest.raises(ConfigError, match="cannot be had"):
        make_runner(model, cache)


def test_without_a_compiler_the_eager_runner_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.ops.native import Unavailable

    monkeypatch.setattr("muomni.ops.native.load", lambda: Unavailable("no C++ compiler is on the path"))
    model = make_model()
    cache = SlotCache(model.config.thinker, 1, CONTEXT)
    engine = Engine(model, cache, make_runner(model, cache, "auto"))
    params = SamplingParams(temperature=0, max_new_tokens=3)
    assert engine.finish(engine.submit(request([1], params))).tokens == alone(model, [1], params)
    assert "EagerRunner" in engine.note and "no C++ compiler" in engine.note
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        make_runner(model, cache, "native")
