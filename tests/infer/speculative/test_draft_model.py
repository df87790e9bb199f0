"""A smaller model that guesses: what is accepted, what it may cost, and its slots."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni import MuOmni
from muomni.errors import EngineError, UserError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams
from muomni.infer.speculative import draft_model as draft_module
from muomni.infer.speculative.draft_model import Drafter, ModelGuesses
from muomni.infer.speculative.drafts import Guesses
from muomni.model import OmniModel, SlotCache
from tests.infer.speculative.test_drafts import CONTEXT, alone, ask, make_model


def eager(model: OmniModel, cache: SlotCache) -> Runners:
    return Runners(EagerRunner(model, cache))


def drafter_of(model: OmniModel, slots: int = 3, capacity: int = CONTEXT) -> Drafter:
    cache = SlotCache(model.config.thinker, slots, capacity)
    return Drafter(model, cache, eager(model, cache))


def engine_of(model: OmniModel, slots: int = 3) -> Engine:
    cache = SlotCache(model.config.thinker, slots, CONTEXT)
    return Engine(model, cache, eager(model, cache))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 20),
    st.sampled_from([{"num_hidden_layers": 1}, {"head_dim": 4, "num_key_value_heads": 2}, {"hidden_size": 8}, None]),
    st.lists(
        st.tuples(st.lists(st.integers(0, 11), min_size=1, max_size=12), st.integers(1, 60), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 3),
    st.integers(20, CONTEXT),
)
def test_replies_are_the_same_with_and_without(
    seed: int, other: dict[str, Any] | None, asked: list[tuple[list[int], int, bool]], slots: int, capacity: int
) -> None:
    model = make_model(seed)
    drafter = drafter_of(model if other is None else make_model(seed + 1, **other), slots, capacity)
    engine = engine_of(model)
    requests = [engine.submit(ask(p * 2, count, speculate=drafter if yes else False)) for p, count, yes in asked]
    for one, (prompt, count, _) in zip(requests, asked, strict=True):
        assert engine.finish(one).tokens == alone(model, prompt * 2, count)
    assert drafter.free == slots


class Timed(EagerRunner):
    """A runner whose steps take a chosen time: `step` seconds, and a twentieth of it for each token more."""

    def __init__(self, model: OmniModel, cache: SlotCache, clock: list[float], step: float) -> None:
        super().__init__(model, cache)
        self.clock, self.step, self.calls = clock, step, 0

    def forward(self, tokens: Tensor, *rest: Any) -> Tensor:
        self.calls += 1
        self.clock[0] += self.step * (1 + (len(tokens) - 1) / 20)
        return super().forward(tokens, *rest)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Request, int, int]]:
    """Answers with a draft model that takes a share of the larger one's time; its request and both models' steps."""

    def answer(model: OmniModel, draft: OmniModel, share: float, prompt: list[int]) -> tuple[Request, int, int]:
        clock = [0.0]
        monkeypatch.setattr("muomni.infer.engine.core.time.perf_counter", lambda: clock[0])
        caches = [SlotCache(m.config.thinker, 1, CONTEXT) for m in (model, draft)]
        large, small = Timed(model, caches[0], clock, 1e-3), Timed(draft, caches[1], clock, 1e-3 * share)
        engine = Engine(model, caches[0], Runners(large))
        count = CONTEXT - len(prompt)
        one = engine.submit(ask(prompt, count, speculate=Drafter(draft, caches[1], Runners(small))))
        assert engine.finish(one).tokens == alone(model, prompt, count)
        assert one.drafts is not None
        return one, large.calls, small.calls

    return answer


@pytest.mark.parametrize("seed", range(3))
def test_the_model_itself_is_always_right(run: Any, seed: int) -> None:
    model = make_model(seed)
    one, steps, _ = run(model, model, 0.01, [1, 2, 3])
    assert one.drafts.accepted == one.drafts.drafted > 90
    assert steps < 20


def test_a_stranger_is_declined(run: Any) -> None:
    # Tied embeddings let any two models repeat the last token; without them they have nothing in common.
    strangers = [make_model(seed, vocab_size=100, tie_word_embeddings=False) for seed in (0, 1)]
    one, steps, guesses = run(*strangers, 0.1, [1, 2, 3])
    assert one.drafts.accepted < one.drafts.drafted / 3
    assert one.drafts.drafted < 40
    assert steps > 80
    assert guesses < 60


def test_one_that_is_always_right_is_declined_where_it_costs_too_much(run: Any) -> None:
    model = make_model(0)
    one, steps, _ = run(model, model, 1.0, [1, 2, 3])
    assert one.drafts.accepted == one.drafts.drafted < 40
    assert steps > 70


def test_reading_a_long_prompt_is_not_what_drafts_cost(run: Any) -> None:
    model = make_model(0)
    one, _, _ = run(model, model, 0.2, [1, 2, 3] * 30)
    assert one.drafts.accepted == one.drafts.drafted >= 20


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_guess_is_the_models_own_whatever_came_of_the_last(data: st.DataObject) -> None:
    model = make_model(3)
    drafter = drafter_of(model, 1)
    prompt = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12))
    guesses = drafter.begin(prompt)
    reply: list[int] = []
    for _ in range(5):
        most = data.draw(st.integers(1, 8))
        draft = guesses.draft(reply, len(prompt), most)
        assert draft == alone(model, prompt + reply, min(most, 4))
        keep = data.draw(st.integers(0, len(draft)))
        reply += draft[:keep] + data.draw(st.lists(st.integers(0, 11), max_size=4))


def test_a_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module, "_CHUNK", 7)
    model = make_model(3)
    prompt = [i * i % 11 for i in range(40)]
    assert drafter_of(model).begin(prompt).draft([], 40, 4) == alone(model, prompt, 4)


def test_slots_are_given_back_and_the_mode_too() -> None:
    draft = make_model(1).train()
    drafter, engine = drafter_of(draft, 2), engine_of(make_model(0))
    requests = [engine.submit(ask([1, 2, i], 100, speculate=drafter)) for i in range(3)]
    for _ in range(8):
        engine.step()
    assert (drafter.free, draft.training) == (0, False)
    for request in requests:
        engine.cancel(request)
    assert (drafter.free, draft.training) == (2, True)
    engine.finish(engine.submit(ask([1, 2], 30, speculate=drafter)))
    assert drafter.free == 2


def test_a_guess_that_fails_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(0)
    drafter, engine = drafter_of(make_model(1)), engine_of(model)

    def fail(*_: object) -> Tensor:
        raise RuntimeError("broken")

    one = engine.submit(ask([1, 2], 30, speculate=drafter))
    other = engine.submit(ask([3, 4], 30))
    monkeypatch.setattr(drafter.runners.now, "forward", fail)
    with pytest.raises(RuntimeError, match="broken"):
        engine.finish(one)
    assert engine.finish(other).tokens == alone(model, [3, 4], 30)
    assert drafter.free == 3


def test_nothing_is_guessed_behind_the_drafts_context() -> None:
    model = make_model(0)
    guesses = ModelGuesses([1] * 18, drafter_of(model, 1, 20))
    assert len(guesses.draft([], 18, 9)) == 3
    assert guesses.draft([1, 1], 18, 9) == alone(model, [1] * 20, 1)
    assert guesses.draft([1, 1, 1], 18, 9) == []


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


def test_chat_takes_a_draft_model(model: MuOmni, nano_folder: Path) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30, "ignore_eos": True}
    draft = MuOmni.from_pretrained(nano_folder, device="cpu")
    prompts = ["Hello there!", "The cat", "Hello there! The dog sat."]
    plain = [model.chat(prompt, **how).tokens for prompt in prompts]
    for guesser in (draft, model):
        assert [model.chat(prompt, speculate=guesser, **how).tokens for prompt in prompts] == plain
        assert [reply.tokens for reply in model.chat_batch(prompts, speculate=guesser, **how)] == plain
    kept = draft.runtime._drafter
    assert kept is not None and kept[0].free == kept[0].cache.slots
    assert model.complete("The cat", speculate=draft, **how).tokens == model.complete("The cat", **how).tokens
    assert draft.runtime._drafter is kept
    with torch.no_grad():
        draft.thinker.norm.weight.mul_(2)
    model.chat("Hello", speculate=draft, **how)
    assert draft.runtime._drafter is not kept


def test_a_draft_model_of_other_tokens_is_refused(model: MuOmni) -> None:
    thinker = model.config.thinker
    other = MuOmni(model.config.replace(thinker=thinker.replace(vocab_size=thinker.vocab_size + 1)))
    with pytest.raises(UserError, match=f"its vocabulary has {thinker.vocab_size + 1} tokens and this model's has"):
        model.chat("Hello", speculate=other, temperature=0)
    same_size = MuOmni(model.config, tokenizer=_shuffled(model))
    with pytest.raises(UserError, match="its tokenizer gives the ids to other tokens"):
        model.chat_batch(["Hello"], speculate=same_size, temperature=0)
    wrong: Any = "runs/small"
    with pytest.raises(UserError, match="speculate = 'runs/small': must be True, False or a smaller model"):
        model.chat("Hello", speculate=wrong, temperature=0)
    assert model.chat("Hello", max_new_tokens=3).tokens


def _shuffled(model: MuOmni) -> Any:
    """The tokenizer of `model` with two ids exchanged."""
    from tokenizers import Tokenizer as Backend

    from muomni.data.text.tokenizer import Tokenizer

    assert model.tokenizer is not None
    text = model.tokenizer.backend.to_str()
    vocab = model.tokenizer.backend.get_vocab(with_added_tokens=False)
    a, b = (token for token in vocab if token.isalpha() and token.isascii() and len(token) == 1 and token in "qz")
    for old, new in ((f'"{a}":{vocab[a]}', f'"{a}":X'), (f'"{b}":{vocab[b]}', f'"{b}":{vocab[a]}')):
        assert old in text
        text = text.replace(old, new)
    return Tokenizer(Backend.from_str(text.replace('":X', f'":{vocab[b]}')), model.tokenizer.chat_template)


def test_a_draft_model_that_does_not_fit_is_said(model: MuOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = MuOmni(model.config, tokenizer=model.tokenizer)
    model.chat("Hello", temperature=0, max_new_tokens=4)  # the model's own cache is there
    monkeypatch.setattr("muomni.infer.runners.select.free_memory", lambda _: 1000)
    with pytest.raises(EngineError, match="the KV cache of the draft model takes"):
        model.chat("Hello", speculate=draft, temperature=0, max_new_tokens=4)


def test_sampled_requests_take_no_slot() -> None:
    drafter, engine = drafter_of(make_model(1)), engine_of(make_model(0))
    one = Request(prompt=[1], params=SamplingParams(seed=1), limit=20, speculate=drafter)
    engine.submit(one)
    for _ in range(6):
        engine.step()
    assert drafter.free == 3
    assert len(engine.finish(one).tokens) == 20


class Scripted(Guesses):
    """Guesses 1s; takes `dear` seconds for what is done once, and fails at its guess number `fail_at`."""

    def __init__(self, tokens: Sequence[int], clock: list[float], dear: float, fail_at: int) -> None:
        super().__init__(tokens)
        self.clock, self.dear, self.fail_at = clock, dear, fail_at
        self.costs: list[float] = []
        self.known = -1

    def _guess(self, count: int) -> list[int]:
        self.fail_at -= 1
        if self.fail_at == 0:
            self.known = len(self._tokens)
            raise RuntimeError("broken")
        self.clock[0] += self.dear
        self.once_s = self.dear
        return [1] * count

    def learn(self, drafted: int, accepted: int, saves: float, costs: float) -> None:
        super().learn(drafted, accepted, saves, costs)
        self.costs.append(costs)


class Script:
    """Begins `Scripted` guesses and keeps the last of them."""

    def __init__(self, clock: list[float], dear: float = 0.0, fail_at: int = -1) -> None:
        self.how = clock, dear, fail_at
        self.last: Scripted | None = None

    def begin(self, tokens: Sequence[int]) -> Scripted:
        self.last = Scripted(tokens, *self.how)
        return self.last


def test_what_is_done_once_is_not_counted_as_the_cost_of_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, model = [0.0], make_model(0)
    monkeypatch.setattr("muomni.infer.engine.core.time.perf_counter", lambda: clock[0])
    cache = SlotCache(model.config.thinker, 1, CONTEXT)
    script = Script(clock, dear=5.0)
    engine = Engine(model, cache, Runners(Timed(model, cache, clock, 1e-3)))
    engine.finish(engine.submit(ask([1, 2, 3], 40, speculate=script)))
    assert script.last is not None and script.last.costs
    # A token more in a step takes a twentieth of 1 ms, whatever the guess took once.
    assert all(cost == pytest.approx(5e-5, rel=0.5) for cost in script.last.costs)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_nothing_is_computed_for_a_request_whose_guess_has_failed(fail_at: int) -> None:
    model = make_model(0)
    told: list[tuple[int, bool]] = []
    engine = engine_of(model)
    script = Script([0.0], fail_at=fail_at)
    one = ask([1, 2], 30, speculate=script)

    def watch(token: int) -> bool:
        told.append((token, one.finished))
        return False

    one.on_token = watch
    engine.submit(one)
    others = [engine.submit(ask([3, 4], 30)), engine.submit(ask([5], 30, speculate=True))]
    with pytest.raises(RuntimeError, match="broken"):
        engine.finish(one)
    for other in others:
        assert engine.finish(other).tokens == alone(model, list(other.prompt), 30)
    assert script.last is not None
    assert len(one.prompt) + len(one.tokens) == script.last.known
    assert [token for token, _ in told] == one.tokens
    assert not any(finished for _, finished in told)
