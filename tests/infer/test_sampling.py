"""Sampling against slow references written from the definitions."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import PromptError
from muomni.infer.sampling import Sampler, SamplingParams, draw_uniform, keep_likely, make_random, penalise, sample


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
    repetition_penalty=st.sampled_from([1.0, 1.5]),
)


@settings(max_examples=150)
@given(st.lists(mixed, min_size=1, max_size=6), st.integers(0, 999))
def test_a_row_is_drawn_alike_alone_and_among_others(params: list[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(params), 40, generator=generator)
    seen = torch.rand(len(params), 40, generator=generator) < 0.5
    uniform = uniforms(seed, len(params))
    sampler = Sampler(params, logits.device)
    together = sampler(logits, uniform, seen[sampler.penalised])
    alone = [sample(logits[i, None], p, uniform[i, None], seen[i, None]) for i, p in enumerate(params)]
    assert together.tolist() == torch.cat(alone).tolist()


@given(rows, st.data(), st.floats(0.5, 2))
def test_penalty_is_that_of_its_definition(logits: list[float], data: st.DataObject, penalty: float) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    expected = [(x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(logits, seen, strict=True)]
    got = penalise(torch.tensor([logits], dtype=torch.float64), torch.tensor([seen]), penalty)
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
    seen = torch.tensor([[False, True, False]])
    assert sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0), seen=seen).tolist() == [0]
    with pytest.raises(ValueError, match="seen"):
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
