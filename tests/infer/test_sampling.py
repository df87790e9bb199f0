"""Sampling against slow references written from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import PromptError
from muomni.infer.sampling import SamplingParams, keep_likely, make_generator, penalise, sample


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


@settings(max_examples=300, deadline=None)
@given(
    logits=rows,
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
)
def test_filters_keep_what_their_definitions_keep(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    expected, close = kept_by_definition(logits, top_k, top_p, min_p)
    filtered = keep_likely(torch.tensor([logits, logits]), top_k, top_p, min_p)
    for row in filtered:
        kept = {i for i, x in enumerate(row.tolist()) if x > -math.inf}
        assert kept, "at least the most likely token stays"
        assert max(logits) in {logits[i] for i in kept}
        if not close:
            assert kept == expected
        assert all(row[i] == logits[i] for i in kept)


def test_top_k_keeps_all_of_a_tie() -> None:
    assert (keep_likely(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2, 1.0, 0.0) > -math.inf).tolist() == [
        [False, True, True, True]
    ]


def test_a_sum_that_is_reached_exactly_is_enough() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    first = float(logits.softmax(-1)[0, 0])
    assert (keep_likely(logits, 0, first, 0.0) > -math.inf).tolist() == [[True, False, False, False]]


def test_rows_are_filtered_separately() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    together = keep_likely(logits, 7, 0.8, 0.05)
    assert torch.equal(together, torch.cat([keep_likely(row[None], 7, 0.8, 0.05) for row in logits]))


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
        make_generator(0, torch.device("cpu")),
    )
    got = drawn.bincount(minlength=5) / len(drawn)
    expected = (logits / 1.5).softmax(0)
    # four standard deviations of a count of 200,000
    assert ((got - expected).abs() <= 4 * (expected * (1 - expected) / 200_000).sqrt() + 1e-6).all()


def test_a_dropped_token_is_never_drawn() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, -2.0]).expand(50_000, 4)
    drawn = sample(logits, SamplingParams(temperature=1.0, top_k=2, top_p=1.0), make_generator(1, torch.device("cpu")))
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-6, 1e30])
def test_extreme_temperatures_and_logits_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([[-6e4, 0.0, 6e4], [6e4, 6e4, -6e4]], dtype=dtype)
    drawn = sample(logits, SamplingParams(temperature=temperature, top_p=0.9), make_generator(2, torch.device("cpu")))
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


def test_a_seed_fixes_the_draw_and_none_does_not() -> None:
    logits = torch.zeros(1, 1_000_000)
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0)

    def draw(seed: int | None) -> int:
        return int(sample(logits, params, make_generator(seed, torch.device("cpu"))))

    assert draw(5) == draw(5) != draw(6)
    assert len({draw(None) for _ in range(5)}) > 1


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    sample(torch.zeros(1, 10), SamplingParams(), make_generator(None, torch.device("cpu")))
    assert torch.equal(before, torch.get_rng_state())


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
