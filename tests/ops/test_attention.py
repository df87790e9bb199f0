"""Attention: every path equals the definition, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.ops.attention import Segments, attention, attention_reference


def make_inputs(seed: int, batch: int, queries: int, keys: int, heads: int, groups: int, size: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int, count: int) -> torch.Tensor:
        return torch.randn(batch, length, count, size, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(queries, heads), draw(keys, groups), draw(keys, groups)


def cut(lengths: list[int], rows: int) -> Segments:
    """Segments of `rows` equal rows, each cut into `lengths`."""
    bounds = torch.tensor([0, *lengths * rows]).cumsum(0).to(torch.int32)
    return Segments(bounds, max(lengths))


def assert_same(inputs, segments=None) -> None:
    fast, slow = attention(*inputs, segments), attention_reference(*inputs, segments)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    upstream = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    queries=st.integers(1, 12),
    past=st.integers(0, 12),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    size=st.sampled_from([2, 8, 16]),
)
def test_causal_attention_equals_its_definition(seed, batch, queries, past, groups, per_group, size):
    assert_same(make_inputs(seed, batch, queries, queries + past, groups * per_group, groups, size))


@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    rows=st.integers(1, 3),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
)
def test_packed_documents_equal_the_definition(seed, lengths, rows, groups, per_group):
    inputs = make_inputs(seed, rows, sum(lengths), sum(lengths), groups * per_group, groups, 8)
    assert_same(inputs, cut(lengths, rows))


def test_a_document_sees_nothing_of_its_neighbours():
    q, k, v = make_inputs(0, 1, 10, 10, 4, 2, 8)
    segments = cut([4, 6], 1)
    whole = attention(q, k, v, segments)
    torch.testing.assert_close(whole[:, 4:], attention(q[:, 4:], k[:, 4:], v[:, 4:]), rtol=0, atol=1e-12)
    changed = k.detach().clone()
    changed[:, :4] += 1
    assert torch.equal(attention(q, changed, v, segments)[:, 4:], whole[:, 4:])


def test_empty_documents_pad_the_list_of_bounds():
    q, k, v = make_inputs(0, 1, 6, 6, 2, 1, 8)
    padded = Segments(torch.tensor([0, 2, 6, 6, 6], dtype=torch.int32), 4)
    assert torch.equal(attention(q, k, v, padded), attention(q, k, v, cut([2, 4], 1)))


def test_packed_rows_refuse_more_keys_than_queries():
    q, k, v = make_inputs(0, 1, 4, 6, 2, 1, 8)
    with pytest.raises(ValueError, match="4 queries but 6 keys"):
        attention(q, k, v, cut([4], 1))


def test_the_custom_operator_is_well_formed():
    """torch's own checks: schema, fake shapes, autograd registration, and dynamic shapes under compile."""
    from muomni.ops.varlen_cpu import _varlen

    q, k, v = (x.detach()[0].float().requires_grad_() for x in make_inputs(0, 1, 7, 7, 4, 2, 8))
    torch.library.opcheck(_varlen, (q, k, v, torch.tensor([0, 3, 7], dtype=torch.int32)))


@given(
    seed=st.integers(0, 2**31), lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4), rows=st.integers(1, 2)
)
def test_packed_documents_in_bf16_err_no_more_than_plain_bf16_attention(seed, lengths, rows):
    """The rule of flash-attention's own tests: error ≤ 2 × that of the plain low-precision path, plus one rounding."""
    exact = make_inputs(seed, rows, sum(lengths), sum(lengths), 4, 2, 16)
    segments = cut(lengths, rows)
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in low]
    upstream = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def run(function, inputs):
        out = function(*inputs, segments)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]

    references = run(attention_reference, exact)
    plain, fast = run(attention_reference, low), run(attention, low)
    for reference, slow, quick in zip(references, plain, fast, strict=True):
        scale = reference.abs().max() * 2**-8
        assert (quick - reference).abs().max() <= 2 * (slow - reference).abs().max() + scale


def test_bf16_gradients_stay_finite_beside_a_document_of_other_scale():
    """The rows behind a document are its neighbour's; their weights must not overflow into it."""
    q, k, v = (x.detach() for x in make_inputs(0, 1, 40, 40, 2, 1, 16))
    q[:, :3] *= 1e-3
    k[:, :3] *= 1e3
    q[:, 3:] *= 1e3
    inputs = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, cut([3, 37], 1))
    for gradient in torch.autograd.grad(out, inputs, torch.ones_like(out)):
        assert torch.isfinite(gradient).all()
