"""Prompt lookup: drafts, what is accepted of them, and when they stop."""

import random
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import PromptError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, generate
from muomni.infer.speculative.drafts import PromptLookup, accept
from muomni.model import OmniModel, SlotCache

CONTEXT = 120


def make_model(seed: int = 0, **changes: Any) -> OmniModel:
    sizes: dict[str, Any] = {
        "vocab_size": 12,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
    }
    return OmniModel(OmniConfig(thinker=ThinkerConfig(**(sizes | changes))), torch.Generator().manual_seed(seed)).eval()


def ask(prompt: list[int], count: int, **options: Any) -> Request:
    params = SamplingParams(temperature=0, max_new_tokens=count)
    return Request(prompt=prompt, params=params, limit=count, **options)


def alone(model: OmniModel, prompt: list[int], count: int) -> list[int]:
    return generate(model, torch.tensor([prompt]), SamplingParams(temperature=0, max_new_tokens=count))[0].tolist()


def drafts_of(tokens: list[int], most: int = 100) -> list[int]:
    """By definition: what followed the last three, or two, tokens where they occurred last before."""
    for length in (3, 2):
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                return tokens[place : place + most]
    return []


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), max_size=20), st.integers(0, 9)
)
def test_a_draft_is_what_followed_before(prompt: list[int], reply: list[int], most: int) -> None:
    lookup = PromptLookup(prompt)
    for end in sorted(random.Random(most).choices(range(len(reply) + 1), k=3)):
        got = lookup.draft(reply[:end], len(prompt), most)
        expected = drafts_of(prompt + reply[:end])
        assert len(got) == (min(4, most) if expected else 0)
        assert got[: len(expected)] == expected[: len(got)]


@given(st.lists(st.integers(0, 2), max_size=6), st.data())
def test_tokens_are_certain_up_to_the_first_contradiction(draft: list[int], data: st.DataObject) -> None:
    likely = data.draw(st.lists(st.integers(0, 2), min_size=len(draft) + 1, max_size=len(draft) + 1))
    got = accept(draft, likely)
    assert got == likely[: len(got)]
    assert got[:-1] == draft[: len(got) - 1]
    assert len(got) == len(draft) + 1 or got[-1] != draft[len(got) - 1]


@settings(max_examples=25)
@given(
    st.integers(0, 20),
    st.lists(
        st.tuples(st.lists(st.integers(0, 11), min_size=1, max_size=12), st.integers(1, 60), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_replies_are_the_same_with_and_without(
    seed: int, asked: list[tuple[list[int], int, bool]], sampled: bool
) -> None:
    model = make_model(seed)
    cache = SlotCache(model.config.thinker, 3, CONTEXT)
    engine = Engine(model, cache, Runners(EagerRunner(model, cache)))
    requests = [engine.submit(ask(prompt * 2, count, speculate=yes)) for prompt, count, yes in asked]
    if sampled:
        engine.submit(Request(prompt=[1], params=SamplingParams(seed=1), limit=10, speculate=True))
    for one, (prompt, count, _) in zip(requests, asked, strict=True):
        assert engine.finish(one).tokens == alone(model, prompt * 2, count)


class Counted(EagerRunner):
    """A runner whose steps take a chosen time: one unit, and a share of it for each token more."""

    def __init__(self, model: OmniModel, cache: SlotCache, clock: list[float], share: float) -> None:
        super().__init__(model, cache)
        self.clock, self.share, self.calls = clock, share, 0

    def forward(self, tokens: Tensor, *rest: Any) -> Tensor:
        self.calls += 1
        self.clock[0] += 1e-3 * (1 + self.share * (len(tokens) - 1))
        return super().forward(tokens, *rest)


def run(monkeypatch: pytest.MonkeyPatch, share: float, prompt: list[int], count: int, seed: int) -> tuple[int, Request]:
    clock = [0.0]
    monkeypatch.setattr("muomni.infer.engine.core.time.perf_counter", lambda: clock[0])
    model = make_model(seed)
    cache = SlotCache(model.config.thinker, 1, CONTEXT)
    runner = Counted(model, cache, clock, share)
    engine = Engine(model, cache, Runners(runner))
    one = engine.finish(engine.submit(ask(prompt, count, speculate=True)))
    assert one.tokens == alone(model, prompt, count)
    return runner.calls, one


def test_a_reply_that_repeats_itself_takes_far_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(s for s in range(50) if len(set(alone(make_model(s), [1, 2], 100)[30:])) == 1)
    calls, one = run(monkeypatch, 0.05, [1, 2], 100, seed)
    assert calls < 45
    assert one.drafts is not None and one.drafts.accepted > 50


def test_it_stops_where_drafts_cost_more_than_they_give(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(s for s in range(50) if len(set(alone(make_model(s), [1, 2], 100)[30:])) == 1)
    _, dear = run(monkeypatch, 1.5, [1, 2], 100, seed)
    _, cheap = run(monkeypatch, 0.05, [1, 2], 100, seed)
    assert dear.drafts is not None and cheap.drafts is not None
    assert dear.drafts.accepted < 30 < cheap.drafts.accepted


def test_it_stops_where_nothing_is_accepted() -> None:
    lookup = PromptLookup([1, 2, 3] * 5)
    reply: list[int] = []
    drafts = 0
    for _ in range(400):
        draft = lookup.draft(reply, 15, 50)
        if draft:
            drafts += 1
            lookup.learn(len(draft), 0, 1e-3, 1e-3)
        reply += [1, 2, 3][len(reply) % 3 : len(reply) % 3 + 1]
    assert 4 <= drafts <= 9


class Invariant(EagerRunner):
    batch_invariant = True


def test_deterministic_requests_are_guessed_for_where_no_step_rounds_by_its_size() -> None:
    model = make_model()
    cache = SlotCache(model.config.thinker, 2, CONTEXT)
    engine = Engine(model, cache, Runners(Invariant(model, cache)))
    prompt = [1, 2, 3] * 4
    one = engine.finish(engine.submit(ask(prompt, 40, speculate=True, batch_invariant=True)))
    assert one.drafts is not None and one.drafts.drafted > 0
    assert one.tokens == alone(model, prompt, 40)


def test_guesses_that_have_no_effect_are_refused_or_told_once_that_is_known() -> None:
    model = make_model()
    cache = SlotCache(model.config.thinker, 2, CONTEXT)
    later: Future[Any] = Future()
    engine = Engine(model, cache, Runners(EagerRunner(model, cache), later))
    one = engine.submit(ask([1, 2], 5, speculate=True, batch_invariant=True))
    engine.step()
    later.set_exception(OSError("no compiler"))
    with pytest.warns(UserWarning, match="no effect with batch_invariant requests here: no compiler"):
        engine.finish(one)
    assert one.tokens == alone(model, [1, 2], 5)
    with pytest.raises(PromptError, match="no effect with batch_invariant, as the steps of EagerRunner"):
        engine.submit(ask([1, 2], 5, speculate=True, batch_invariant=True))
