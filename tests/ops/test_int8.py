"""int8 products: rounding is to nearest, and each kernel keeps to the bound its rounding allows."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.ops.int8 import KERNELS, Kernel, dequantize, int8_linear, quantize_rows, why_not

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def case(M: int, N: int, K: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with some large channels, as models have them, and a quantised weight."""
    x = normal(M, K, seed=seed) * torch.where(torch.arange(K) % 7 == 3, 8.0, 1.0)
    return x, *quantize_rows(normal(N, K, seed=seed + 1) * torch.logspace(-3, 1, N)[:, None])


# Rounding


@given(N=st.integers(1, 40), K=st.integers(1, 70), seed=st.integers(0, 999), power=st.integers(-30, 30))
def test_rounding_is_to_the_nearest_step_of_each_row(N: int, K: int, seed: int, power: int) -> None:
    weight = normal(N, K, seed=seed) * 2.0**power
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8 and values.is_contiguous() and scale.dtype == torch.float32
    # The largest of a row is 127 exactly: no range is given away.
    assert torch.equal(values.abs().amax(1), torch.full((N,), 127, dtype=torch.int8))
    error = (dequantize(values, scale, torch.float64) - weight.double()).abs()
    assert bool((error <= 0.5001 * scale.double()[:, None]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_types_and_pieces_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(50, 24, dtype=dtype)
    whole = quantize_rows(weight)
    monkeypatch.setattr("muomni.ops.int8._QUANTIZE_BLOCK", 7 * 24)
    pieces = quantize_rows(weight)
    assert torch.equal(whole[0], pieces[0]) and torch.equal(whole[1], pieces[1])


def test_rows_of_zeros_and_of_denormal_numbers() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 2] = 1e-44
    weight[2, 3] = -2.0
    values, scale = quantize_rows(weight)
    assert bool(scale.isfinite().all()) and bool((scale > 0).all())
    torch.testing.assert_close(dequantize(values, scale), weight, rtol=0, atol=1e-38)
    assert int8_linear(torch.ones(1, 8), values, scale, kernel="dynamic").isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = normal(4, 4)
    weight[2, 1] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize_rows(weight)


def test_meta_gives_shapes() -> None:
    values, scale = quantize_rows(torch.empty(6, 5, device="meta"))
    assert (values.shape, values.dtype, scale.shape) == ((6, 5), torch.int8, (6,)) and values.is_meta


# Kernels


def allowed(kernel: Kernel, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(M, N) how far a kernel may be from the exact product."""
    exact = dequantize(weight, scale, torch.float64)
    size = x.double().abs() @ exact.abs().T
    rounding = size * 2.0**-20
    if kernel == "packed":  # x, the scale and the result are rounded to 8 bits
        return rounding + size * 3 * 2.0**-8
    if kernel == "dynamic":  # each activation is off by half a step at most
        step = x.double().abs().amax(1, keepdim=True) / 127
        return rounding + 0.5001 * step * exact.abs().sum(1)
    return rounding


@settings(max_examples=60)
@given(
    M=st.integers(1, 70),
    N=st.integers(1, 90),
    K=st.integers(1, 130),
    seed=st.integers(0, 999),
    kernel=st.sampled_from(KERNELS),
)
def test_a_kernel_keeps_to_its_bound(M: int, N: int, K: int, seed: int, kernel: Kernel) -> None:
    if why_not(kernel, CPU, N, K) is not None:
        return
    x, weight, scale = case(M, N, K, seed)
    got = int8_linear(x, weight, scale, kernel=kernel)
    right = x.double() @ dequantize(weight, scale, torch.float64).T
    assert got.shape == (M, N) and got.dtype == torch.float32
    assert bool(((got.double() - right).abs() <= allowed(kernel, x, weight, scale)).all())


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_work_on_this_machine(kernel: Kernel) -> None:
    if (reason := why_not(kernel, CPU, 64, 64)) is not None:
        pytest.skip(reason)
    x, weight, scale = case(5, 64, 64, 3)
    got = int8_linear(x, weight, scale, kernel=kernel)
    assert (got - int8_linear(x, weight, scale)).norm() <= 0.02 * got.norm()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leading_sizes_bias_and_type(kernel: Kernel, dtype: torch.dtype) -> None:
    x, weight, scale = case(12, 16, 32, 4)
    bias = normal(16, seed=9)
    flat = int8_linear(x.to(dtype), weight, scale, bias, kernel)
    got = int8_linear(x.to(dtype).view(2, 3, 2, 32), weight, scale, bias, kernel)
    assert got.shape == (2, 3, 2, 16) and got.dtype == dtype
    assert torch.equal(got.view(12, 16), flat)
    plain = int8_linear(x.to(dtype), weight, scale, None, kernel)
    assert torch.equal(flat, plain + bias.to(dtype))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("offset", [1, 8, 16])
def test_any_address_will_do(kernel: Kernel, offset: int) -> None:
    x, weight, scale = case(5, 33, 64, 7)
    there = torch.empty(weight.numel() + offset, dtype=torch.int8)[offset:].view_as(weight).copy_(weight)
    moved = torch.empty(x.numel() + offset)[offset:].view_as(x).copy_(x)
    assert torch.equal(int8_linear(moved, there, scale, kernel=kernel), int8_linear(x, weight, scale, kernel=kernel))
    low = moved.bfloat16()
    torch.testing.assert_close(
        int8_linear(low, there, scale, kernel=kernel), int8_linear(x.bfloat16(), weight, scale, kernel=kernel)
    )


def test_packed_is_not_used_where_it_would_read_beyond_a_row() -> None:
    assert "multiple of 16" in str(why_not("packed", CPU, 64, 40))


def test_cast_in_pieces_is_cast_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, scale = case(3, 50, 24, 5)
    whole = int8_linear(x, weight, scale, kernel="cast")
    monkeypatch.setattr("muomni.ops.int8._BLOCK", 7 * 24)
    torch.testing.assert_close(int8_linear(x, weight, scale, kernel="cast"), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_a_number_stays_visible(kernel: Kernel) -> None:
    x, weight, scale = case(3, 16, 32, 6)
    x[1, 4] = float("nan")
    got = int8_linear(x, weight, scale, kernel=kernel)
    assert bool(got[1].isnan().all())
    assert bool(got[[0, 2]].isfinite().all())


# Private operators are tried before they are used


@pytest.fixture
def fresh() -> Iterator[None]:
    why_not.cache_clear()
    yield
    why_not.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_an_operator_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    assert why_not("dynamic", CPU, 16, 16) == "this torch has no torch._int_mm"
    assert why_not("cast", CPU, 16, 16) is None


@pytest.mark.usefixtures("fresh")
def test_an_operator_that_is_wrong_or_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: right(a, b) + 1000)
    assert "comes out wrong" in str(why_not("dynamic", CPU, 16, 16))
    why_not.cache_clear()

    def fails(*_: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(torch, "_int_mm", fails)
    assert why_not("dynamic", CPU, 16, 16) == "torch._int_mm does not work here: no such kernel"
