"""Rotary positions and RMSNorm against their definitions."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.ops.rms_norm import rms_norm
from muomni.ops.rope import apply_rope, rope_tables


@given(seed=st.integers(0, 2**31), size=st.sampled_from([2, 6, 16]), theta=st.sampled_from([1e2, 1e4, 1e6]))
def test_rope_turns_each_pair_as_a_complex_number(seed, size, theta):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 3, size, generator=generator, dtype=torch.float64)
    positions = torch.randint(0, 1000, (2, 5), generator=generator)
    turned = apply_rope(x, *rope_tables(positions, size, theta, torch.float64))
    half = size // 2
    for pair in range(half):
        angle = positions.double() * theta ** (-2 * pair / size)
        number = (
            torch.complex(x[..., pair], x[..., pair + half]) * torch.polar(torch.ones_like(angle), angle)[:, :, None]
        )
        torch.testing.assert_close(turned[..., pair], number.real, rtol=0, atol=1e-10)
        torch.testing.assert_close(turned[..., pair + half], number.imag, rtol=0, atol=1e-10)


def test_rope_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        turned = [apply_rope(x, *rope_tables(torch.tensor([[p]]), 16, 1e4, torch.float64)) for x, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(score(7, 3), score(104, 100), rel_tol=1e-9)
    assert not math.isclose(score(7, 3), score(7, 4), rel_tol=1e-6)


@given(seed=st.integers(0, 2**31), size=st.integers(1, 33), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm_equals_its_definition(seed, size, scale):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, size, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(size, generator=generator, dtype=torch.float64)
    expected = torch.stack([row / math.sqrt(float((row**2).mean()) + 1e-6) * weight for row in x])
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected, rtol=1e-12, atol=1e-12)


def test_rms_norm_of_bf16_is_taken_in_fp32():
    x = torch.full((1, 1024), 300.0, dtype=torch.bfloat16)
    out = rms_norm(x, torch.ones(1024), 1e-6)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.ones_like(x))
