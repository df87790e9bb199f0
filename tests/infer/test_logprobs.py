"""Logprobs of replies are those of the model, whatever else shapes the reply and whoever is beside it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni import MuOmni
from muomni.errors import PromptError, SettingError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, generate
from muomni.infer.logprobs import OwnLogprobs, TokenLogprob
from muomni.infer.reference import score
from muomni.infer.runners.native import make_native_runner
from muomni.model import OmniModel, SlotCache
from muomni.ops.native import Unavailable
from tests.equivalence.test_engine import CONTEXT, ids_of, make_model, request

Rows = list[tuple[list[int], SamplingParams, dict[str, Any]]]


def make_engine(model: OmniModel, runner: str = "eager") -> Engine:
    cache = SlotCache(model.config.thinker, 4, CONTEXT)
    if runner == "eager":
        return Engine(model, cache, Runners(EagerRunner(model, cache)))
    made = make_native_runner(model, cache, threads=1)
    if isinstance(made, Unavailable):
        pytest.skip(made.reason)
    return Engine(model, cache, Runners(made))


def agree(ours: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert [one.token for one in ours] == [one.token for one in expected]
    for one, other in zip(ours, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-4)
        values, others = [value for _, value in one.top], [value for _, value in other.top]
        assert values == pytest.approx(others, abs=2e-4)
        # Where two are nearly as likely, rounding may swap them.
        for place, ((token, value), (expected_token, _)) in enumerate(zip(one.top, other.top, strict=True)):
            near = [x for x in others if abs(x - value) < 1e-3]
            assert token == expected_token or len(near) > 1 or place == len(others) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.sampled_from([3, 25, 40]), st.sampled_from([3, 1000]), st.data())
def test_logprobs_are_a_log_softmax(rows: int, vocabulary: int, levels: int, data: st.DataObject) -> None:
    """With few levels most tokens are tied: of them the smallest ids are told."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = torch.randint(levels, (rows, vocabulary), generator=generator).float() / 7
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    most = data.draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows))
    count = data.draw(st.integers(0, rows))
    logprobs = OwnLogprobs(logits, most)
    masked = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.5, -torch.inf)
    masked.scatter_(1, tokens[:, None], logits.gather(1, tokens[:, None]))
    told = logprobs.of(masked, tokens[:count])
    assert len(told) == count
    for row, one in enumerate(told):
        expected = logits[row].log_softmax(0)
        assert one.token == tokens[row] and one.logprob == pytest.approx(float(expected[one.token]), abs=1e-5)
        assert len(one.top) == min(most[row], vocabulary) and len(dict(one.top)) == len(one.top)
        best = sorted(logits[row].tolist(), reverse=True)[: len(one.top)]
        assert [float(logits[row, token]) for token, _ in one.top] == best
        assert all(value == pytest.approx(float(expected[token]), abs=1e-5) for token, value in one.top)
        alone = OwnLogprobs(logits[row, None], [most[row]])
        assert alone.of(masked[row, None], tokens[row, None]) == [one], "another row has changed it"


wanted: Any = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0, 0, 1.0]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.6]),
    logit_bias=st.sampled_from([{}, {3: -100, 11: 1.5}]),
    logprobs=st.sampled_from([None, 0, 3, 20]),
    seed=st.integers(0, 999),
)


@pytest.mark.parametrize("runner", ["eager", "native"])
def test_the_engine_tells_what_one_pass_over_the_reply_tells(runner: str) -> None:
    model = make_model(4).requires_grad_(False)
    engine = make_engine(model, runner)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 99), wanted, st.booleans()), min_size=1, max_size=5))
    def check(asked: list[tuple[int, SamplingParams, bool]]) -> None:
        requests = [
            engine.submit(request(ids_of(seed, 1 + seed % 20), params, batch_invariant=invariant))
            for seed, params, invariant in asked
        ]
        for one in requests:
            engine.finish(one)
            if one.params.logprobs is None:
                assert one.logprobs == []
                continue
            tokens = torch.tensor([one.tokens])
            (expected,) = score(model, torch.tensor([list(one.prompt)]), tokens, one.params.logprobs)
            agree(one.logprobs, expected)

    check()


@pytest.mark.parametrize("runner", ["eager", "native"])
def test_who_wants_logprobs_changes_no_token_beside_it_or_its_own(runner: str) -> None:
    model = make_model(5).requires_grad_(False)
    settings = [{"temperature": 0}, {"seed": 3}, {"seed": 4, "presence_penalty": 1.0}]

    def replies(mixture: Sequence[int | None]) -> list[list[int]]:
        engine = make_engine(model, runner)
        params = [
            SamplingParams(max_new_tokens=10, logprobs=most, **each)  # type: ignore[arg-type]
            for each, most in zip(settings, mixture, strict=True)
        ]
        requests = [engine.submit(request(ids_of(n, 9), each)) for n, each in enumerate(params)]
        return [engine.finish(one).tokens for one in requests]

    plain = replies([None, None, None])
    for mixture in ([2, None, None], [None, 0, None], [None, None, 20], [1, 2, 3]):
        assert replies(mixture) == plain


@pytest.mark.parametrize("runner", ["eager", "native"])
def test_speculation_tells_the_same(runner: str) -> None:
    model = make_model(6).requires_grad_(False)
    engine = make_engine(model, runner)
    engine.finish(engine.submit(request([1], SamplingParams(temperature=0, max_new_tokens=4))))  # how long a step takes
    params = SamplingParams(temperature=0, max_new_tokens=40, logprobs=4)
    prompt = ids_of(1, 8) * 4
    asked = [
        Request(prompt=prompt, params=params, limit=40, speculate=True),
        Request(prompt=prompt[:20], params=SamplingParams(temperature=0, max_new_tokens=30), limit=30, speculate=True),
        Request(prompt=prompt[3:], params=params, limit=40, ends=frozenset({7})),
    ]
    for one in asked:
        engine.submit(one)
    for one in asked:
        engine.finish(one)
    assert asked[0].drafts is not None and asked[0].drafts.accepted > 0, "nothing was drafted"
    assert asked[1].logprobs == []
    for one in asked[::2]:
        (expected,) = score(model, torch.tensor([list(one.prompt)]), torch.tensor([one.tokens]), 4)
        agree(one.logprobs[: len(one.tokens)], expected)
        assert all(told.top[0] == (told.token, told.logprob) for told in one.logprobs), "greedy takes the first"


def test_a_reply_has_them_for_each_token(nano_folder: Any) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    plain = model.chat("Hello", temperature=0, max_new_tokens=8)
    reply = model.chat("Hello", temperature=0, max_new_tokens=8, logprobs=2)
    assert plain.logprobs is None and reply.tokens == plain.tokens
    assert reply.logprobs is not None and [one.token for one in reply.logprobs] == list(reply.tokens)
    assert all(len(one.top) == 2 and one.top[0] == one[:2] for one in reply.logprobs)
    stream = model.stream("Hello", temperature=0, max_new_tokens=8, logprobs=2, stop=reply.text[2:4])
    cut = stream.finish()
    assert cut.logprobs == reply.logprobs[: len(cut.tokens)]
    rows = model.chat_batch(["Hello", "The cat"], sampling=[{"logprobs": 0}, {}], temperature=0, max_new_tokens=8)
    assert rows[1].logprobs is None and rows[0].logprobs is not None
    assert [one.logprob for one in rows[0].logprobs] == pytest.approx([one.logprob for one in reply.logprobs], abs=1e-4)
    ids = torch.tensor([[1, 2]])
    for call in (lambda: model.generate(ids, logprobs=1), lambda: generate(model, ids, SamplingParams(logprobs=1))):
        with pytest.raises(PromptError, match="logprobs: token ids are returned alone; use chat"):
            call()


@pytest.mark.parametrize("speculate", [False, True])
def test_a_grammar_changes_the_reply_but_not_what_the_model_gives_to_it(nano_folder: Any, speculate: bool) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    assert model.tokenizer is not None
    wanted: dict[str, Any] = {"temperature": 0, "grammar": "start: /(abc ){12}/", "max_new_tokens": 60}
    reply = model.complete("The cat", **wanted, logprobs=2, speculate=speculate)
    assert reply.text == "abc " * 12 and reply.logprobs is not None
    prompt = torch.tensor([[*model.tokenizer.begin_ids, *model.tokenizer.encode("The cat")]])
    (expected,) = score(model, prompt, torch.tensor([reply.tokens]), 2)
    agree(list(reply.logprobs), expected)
    assert any(one.token not in dict(one.top) for one in reply.logprobs), "the model would have said the same"


def test_biases_that_leave_a_grammar_no_token_are_told_as_that(nano_folder: Any) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    assert model.tokenizer is not None
    banned = {token: -100 for token in range(model.tokenizer.vocab_size) if b"a" in model.tokenizer.bytes_of(token)}
    with pytest.raises(SettingError, match="logit_bias bans all tokens that the grammar allows"):
        model.chat("Hello", grammar="start: /a+/", logit_bias=banned, max_new_tokens=4)
    assert model.chat("Hello", max_new_tokens=2).tokens
