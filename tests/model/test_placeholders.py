"""Features in the place of placeholders: torch's masked_scatter, without its wait for the device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.model.placeholders import fill_placeholders


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 4),
    tokens=st.integers(1, 12),
    width=st.integers(1, 5),
    share=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_splice_is_masked_scatter(seed, rows, tokens, width, share):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, tokens, generator=draw) < share
    ids = torch.randint(10, 20, (rows, tokens), generator=draw).masked_fill(mask, 7)
    x = torch.randn(rows, tokens, width, generator=draw, dtype=torch.float64, requires_grad=True)
    features = torch.randn(int(mask.sum()), width, generator=draw, dtype=torch.float64, requires_grad=True)
    found, wanted = fill_placeholders(x, ids == 7, features, "id 7"), x.masked_scatter(mask[..., None], features)
    assert torch.equal(found, wanted)
    upstream = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    grads = [torch.autograd.grad(out, (x, features), upstream, allow_unused=True) for out in (found, wanted)]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(
            torch.zeros(()) if ours is None else ours, torch.zeros(()) if theirs is None else theirs
        ) or (ours is None and not theirs.any())


def test_the_dtype_of_the_embeddings_stays():
    x, ids = torch.zeros(1, 3, 2), torch.tensor([[1, 7, 7]])
    out = fill_placeholders(x, ids == 7, torch.ones(2, 2, dtype=torch.bfloat16), "")
    assert out.dtype == torch.float32 and out[0, :, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_numbers_that_differ_are_an_error(count):
    with pytest.raises(ValueError, match=rf"2 places \(id 7\) for the {count} features"):
        fill_placeholders(torch.zeros(1, 3, 2), torch.tensor([[False, True, True]]), torch.ones(count, 2), "id 7")


def test_widths_that_differ_are_an_error():
    with pytest.raises(ValueError, match="width 3 cannot stand between embeddings of width 2"):
        fill_placeholders(torch.zeros(1, 1, 2), torch.tensor([[True]]), torch.ones(1, 3), "")


def test_it_is_traced_without_a_break_and_then_checks_on_the_device():
    compiled = torch.compile(fill_placeholders, backend="eager", fullgraph=True)
    x, ids = torch.zeros(1, 3, 2), torch.tensor([[1, 7, 7]])
    two = torch.ones(2, 2)
    assert torch.equal(compiled(x, ids == 7, two, ""), fill_placeholders(x, ids == 7, two, ""))
    with pytest.raises(RuntimeError, match="differ in number"):
        compiled(x, ids == 7, torch.ones(3, 2), "")
