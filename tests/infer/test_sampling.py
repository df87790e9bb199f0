"""Sampling against slow references written from the definitions."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import PromptError, SettingError
from muomni.infer.penalties import TokenCounts, penalise
from muomni.infer.sampling import (
    MOST_BIASES,
    Sampler,
    SamplingParams,
    check_biases,
    draw_uniform,
    keep_likely,
    make_random,
    sample,
)


def uniforms(seed: int | None, rows: int = 1) -> torch.Tensor:
    source = make_random(seed)
    return torch.tensor([draw_uniform(source) for _ in range(rows)])


def kept_by_definition(logits: list[float], top_k: int, top_p: float, min_p: float) -> tuple[set[int], bool]:
    """The tokens that stay, and whether a sum lies so close to `top_p` that rounding may decide."""
    ranked = sorted(logits, reverse=True)
    best = ranked[:top_k] if top_k else ranked
    weights = [math.exp(x - best[0]) for x in best]
    least, before, close = best[0], 0.0, False
    for value, weight in zip(best, weights, strict=True):
        close |= abs(before - top_p) < 1e-5
        if before < top_p or top_p == 1:
            least = value
        before += weight / sum(weights)
    relative = [math.exp(x - ranked[0]) for x in logits]
    close |= any(abs(r - min_p) < 1e-5 * min_p for r in relative)
    return {i for i, x in enumerate(logits) if x >= least and relative[i] >= min_p}, close


# Quarters make ties common, and exactly representable.
rows = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=1, max_size=40)


def kept(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> list[list[int]]:
    """The tokens of each row that keep a weight, at temperature 1."""
    rows = logits.shape[0]
    nucleus = torch.full((rows, 1), top_p) if top_p < 1 else None
    weights, ids = keep_likely(logits, top_k, 1.0, nucleus, torch.full((rows, 1), min_p))
    ids = torch.arange(logits.shape[1]).expand_as(weights) if ids is None else ids
    return [sorted(i[w > 0].tolist()) for w, i in zip(weights, ids, strict=True)]


@settings(max_examples=300, deadline=None)
@given(
    logits=rows,
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
)
def test_filters_keep_what_their_definitions_keep(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    expected, close = kept_by_definition(logits, top_k, top_p, min_p)
    for row in kept(torch.tensor([logits, logits]), top_k, top_p, min_p):
        assert row, "at least the most likely token stays"
        assert max(logits) in {logits[i] for i in row}
        if not close:
            # Of tokens equally likely at the border of top_k some stay, k in all.
            size = min(top_k or len(logits), len(expected))
            least = min(logits[i] for i in expected)
            assert len(row) == size and set(row) <= expected
            assert {i for i in row if logits[i] > least} == {i for i in expected if logits[i] > least}


def test_top_k_keeps_k_of_a_tie_and_top_p_all_of_it() -> None:
    (row,) = kept(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2, 1.0, 0.0)
    assert len(row) == 2 and 0 not in row
    assert kept(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 0, 0.5, 0.0) == [[1, 2, 3]]


def test_a_sum_that_is_reached_exactly_is_enough() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights = (logits[0] - 2).exp()
    first = float(weights[0] / weights.cumsum(0)[-1])
    assert kept(logits, 0, first, 0.0) == [[0]]
    assert kept(logits, 0, first + 1e-6, 0.0) == [[0, 1]]


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.sampled_from([16_384, 16_400, 32_000]),
    k=st.sampled_from([1, 2, 50, 64, 65, 300]),
    levels=st.sampled_from([2, 30, 10**6]),
    seed=st.integers(0, 999),
)
def test_the_most_likely_of_a_large_vocabulary_are_found(vocabulary: int, k: int, levels: int, seed: int) -> None:
    """With few levels nearly all tokens are tied; side by side, the largest share their stretches."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (2, vocabulary), generator=generator) / 4 - 3
    logits[1, 100 : 100 + k] += levels
    weights, ids = keep_likely(logits, k, 1.0, None, None)
    assert ids is not None
    expected = logits.topk(k).values
    assert torch.equal(logits.gather(1, ids), expected) and all(len(set(row)) == k for row in ids.tolist())
    assert torch.equal(weights, (expected - expected[:, :1]).exp())


def test_rows_are_filtered_separately() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    together = kept(logits, 7, 0.8, 0.05)
    assert together == [kept(row[None], 7, 0.8, 0.05)[0] for row in logits]
    assert len({len(row) for row in together}) > 1


mixed = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 3, 10, 99]),
    top_p=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -2.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.3, -0.1]),
    logit_bias=st.one_of(
        st.just({}), st.dictionaries(st.integers(0, 39), st.sampled_from([-100, -1.3, 0, 0.1, 5, 100]), max_size=5)
    ),
)


def changed_by_definition(logits: torch.Tensor, counts: torch.Tensor, params: SamplingParams) -> list[float]:
    """The logits of one row, token by token, in fp32."""
    changed = []
    bias = dict(params.biases)
    for token, logit in enumerate(logits.tolist()):
        count = int(counts[token])
        x = torch.tensor(logit)
        if count:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        x = x - (count // 2) * torch.tensor(params.frequency_penalty)
        if count // 2:
            x = x - params.presence_penalty
        x = x + bias.get(token, 0)
        changed.append(-math.inf if bias.get(token) == -100 else float(x))
    return changed


@settings(max_examples=100)
@given(st.lists(mixed, min_size=1, max_size=5), st.integers(0, 999))
def test_the_batch_is_a_loop_over_rows_and_tokens(params: list[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(params), 40, generator=generator)
    counts = torch.randint(0, 8, (len(params), 40), generator=generator, dtype=torch.int32)
    uniform = uniforms(seed, len(params))
    expected = []
    for row, p in enumerate(params):
        changed = torch.tensor([changed_by_definition(logits[row], counts[row], p)])
        plain = SamplingParams(temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p)
        expected.append(int(sample(changed, plain, uniform[row, None])))
    sampler = Sampler(params, logits.device)
    before = logits.clone()
    assert sampler(logits, uniform, counts[sampler.penalised]).tolist() == expected
    assert torch.equal(logits, before), "the logits belong to the runner"


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=4), st.data())
def test_tokens_are_counted_as_they_come(prompts: list[list[int]], data: st.DataObject) -> None:
    rows = len(prompts)
    counts = TokenCounts(rows, 10, torch.device("cpu"))
    replies = [data.draw(st.lists(st.integers(0, 9), max_size=6)) for _ in prompts]
    for row in reversed(range(rows)):
        counts.begin(row, torch.tensor([9, 9, 8]), torch.tensor([1, 1]))  # of a request before
        counts.begin(row, torch.tensor(prompts[row]), torch.tensor(replies[row], dtype=torch.int64))
    new = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    counts.add(torch.arange(rows), torch.tensor(new))
    expected = [
        [2 * [*reply, token].count(i) + (i in prompt) for i in range(10)]
        for prompt, reply, token in zip(prompts, replies, new, strict=True)
    ]
    assert counts.of(torch.arange(rows)).tolist() == expected


@settings(max_examples=150)
@given(st.lists(mixed, min_size=1, max_size=6), st.integers(0, 999))
def test_a_row_is_drawn_alike_alone_and_among_others(params: list[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(params), 40, generator=generator)
    counts = torch.randint(0, 5, (len(params), 40), generator=generator, dtype=torch.int32)
    uniform = uniforms(seed, len(params))
    sampler = Sampler(params, logits.device)
    together = sampler(logits, uniform, counts[sampler.penalised])
    alone = [sample(logits[i, None], p, uniform[i, None], counts[i, None]) for i, p in enumerate(params)]
    assert together.tolist() == torch.cat(alone).tolist()


@given(rows, st.data(), st.floats(0.5, 2))
def test_penalty_is_that_of_its_definition(logits: list[float], data: st.DataObject, penalty: float) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    expected = [(x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(logits, seen, strict=True)]
    got = penalise(torch.tensor([logits], dtype=torch.float64), torch.tensor([seen]).int(), penalty)
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    drawn = sample(
        logits.expand(200_000, 5),
        SamplingParams(temperature=1.5, top_k=0, top_p=1.0),
        uniforms(0, 200_000),
    )
    got = drawn.bincount(minlength=5) / len(drawn)
    expected = (logits / 1.5).softmax(0)
    # four standard deviations of a count of 200,000
    assert ((got - expected).abs() <= 4 * (expected * (1 - expected) / 200_000).sqrt() + 1e-6).all()


def test_a_dropped_token_is_never_drawn() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, -2.0]).expand(50_000, 4)
    drawn = sample(logits, SamplingParams(temperature=1.0, top_k=2, top_p=1.0), uniforms(1, 50_000))
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-6, 1e30])
def test_extreme_temperatures_and_logits_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([[-6e4, 0.0, 6e4], [6e4, 6e4, -6e4]], dtype=dtype)
    drawn = sample(logits, SamplingParams(temperature=temperature, top_p=0.9), uniforms(2, 2))
    assert drawn.dtype == torch.int64
    if temperature < 1:
        assert drawn[0] == 2 and drawn[1] in (0, 1)


def test_greedy_takes_the_most_likely_after_the_penalty() -> None:
    logits = torch.tensor([[2.0, 3.0, -1.0]])
    assert sample(logits, SamplingParams(temperature=0)).tolist() == [1]
    counts = torch.tensor([[0, 1, 0]], dtype=torch.int32)
    assert sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0), counts=counts).tolist() == [0]
    with pytest.raises(ValueError, match="tokens so far"):
        sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0))
    with pytest.raises(ValueError, match="a number a row"):
        sample(logits, SamplingParams())


def test_numbers_are_below_one_and_the_greatest_draws_a_token_that_stays() -> None:
    class Greatest(random.Random):
        def getrandbits(self, k: int) -> int:
            return 2**k - 1

    number = torch.tensor([draw_uniform(Greatest())])
    assert 0 < 1 - float(number) < 1e-6
    for top_k in (0, 2, 5):
        params = SamplingParams(temperature=1, top_k=top_k, top_p=1.0, min_p=0.5)
        assert sample(torch.tensor([[0.0, 3.0, 2.9, -5.0, -9.0]]), params, number).tolist() == [2]


def test_a_seed_fixes_the_draw_and_none_does_not() -> None:
    logits = torch.zeros(1, 1_000_000)
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0)

    def draw(seed: int | None) -> int:
        return int(sample(logits, params, uniforms(seed)))

    assert draw(5) == draw(5) != draw(6)
    assert len({draw(None) for _ in range(5)}) > 1


def test_sampling_leaves_the_global_generator_alone() -> None:
    before, python = torch.get_rng_state(), random.getstate()
    sample(torch.zeros(1, 10), SamplingParams(), uniforms(None))
    assert torch.equal(before, torch.get_rng_state()) and random.getstate() == python


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", 1e-9),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", "0"),
        ("presence_penalty", -2.1),
        ("presence_penalty", float("nan")),
        ("presence_penalty", True),
        ("logit_bias", {0: 101}),
        ("logit_bias", {0: -100.5}),
        ("logit_bias", {0: float("nan")}),
        ("logit_bias", {0: True}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"01": 1}),
        ("logit_bias", {"1_0": 1}),
        ("logit_bias", {"\u0661": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {0.5: 1}),
        ("logit_bias", {True: 1}),
        ("logit_bias", [1, 2]),
        ("logit_bias", None),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("logprobs", 2.0),
        ("stop", ""),
        ("stop", ["a", 3]),
        ("stop", 3),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "1"),
        ("ignore_eos", 1),
    ],
)
def test_a_wrong_setting_is_named(key: str, value: object) -> None:
    with pytest.raises(PromptError, match=rf"^{key} = .*: must be ") as caught:
        SamplingParams.of(**{key: value})
    assert repr(value) in str(caught.value)


def test_an_unknown_setting_is_told_what_was_meant() -> None:
    with pytest.raises(PromptError, match="'temprature'; did you mean temperature"):
        SamplingParams.of(temprature=1)
    with pytest.raises(PromptError, match="There are: max_new_tokens, temperature"):
        SamplingParams.of(banana=1)


def test_one_stop_text_is_a_list_of_one() -> None:
    assert SamplingParams(stop="END").stops == SamplingParams(stop=["END"]).stops == ("END",)
    assert hash(SamplingParams(stop=["END"])) == hash(SamplingParams(stop="END"))


def test_biases_are_kept_in_one_form_and_bounded() -> None:
    kept = SamplingParams(logit_bias={"7": 1, 3: -100})  # type: ignore[dict-item]
    assert kept.biases == kept.logit_bias == ((3, -100), (7, 1))
    assert kept == replace(kept, seed=None) and hash(kept) == hash(SamplingParams(logit_bias={3: -100, 7: 1}))
    SamplingParams(logit_bias=dict.fromkeys(range(MOST_BIASES), 1.0))
    with pytest.raises(SettingError, match="at most 1024") as caught:
        SamplingParams(logit_bias=dict.fromkeys(range(MOST_BIASES + 1), 1.0))
    assert caught.value.setting == "logit_bias" and len(str(caught.value)) < 400
    check_biases(kept, 8)
    with pytest.raises(SettingError, match="no token 7; ids are whole numbers from 0 to 6"):
        check_biases(kept, 7)
    with pytest.raises(SettingError, match="no token is left"):
        check_biases(SamplingParams(logit_bias={0: -100, 1: -100}), 2)


@pytest.mark.parametrize("temperature", [0, 1e-6, 1.0, 1e30])
def test_a_banned_token_never_comes_and_a_large_bias_always_does(temperature: float) -> None:
    logits = torch.tensor([[6e4, 0.0, 1.0], [-30.0, 20.0, 10.0]]).repeat(500, 1)
    uniform = uniforms(3, 1000)
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.9), (3, 0.5)):
        filters: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        assert 0 not in sample(logits, SamplingParams(logit_bias={0: -100}, **filters), uniform).tolist()
        if temperature < 2:
            assert set(
                sample(logits[1::2], SamplingParams(logit_bias={0: 100}, **filters), uniform[1::2]).tolist()
            ) == {0}
