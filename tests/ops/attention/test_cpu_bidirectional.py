"""Attention that is not causal: every backend that runs here equals the definition, forward and backward."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.ops.attention import (
    Segments,
    attention,
    attention_reference,
    cpu_bidirectional,
    flash_attn,
    flex,
    sdpa,
    varlen,
)

SHAPES = {
    "seed": st.integers(0, 2**31),
    "lengths": st.lists(st.sampled_from([0, 1, 2, 5, 9]), min_size=1, max_size=7).filter(any),
    "rows": st.integers(1, 3),
    "groups": st.integers(1, 2),
    "per_group": st.integers(1, 3),
}


def make_inputs(
    seed: int, batch: int, tokens: int, heads: int, groups: int, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    counts = (heads, groups, groups)
    made = [torch.randn(batch, tokens, count, 8, generator=draw, dtype=torch.float64) for count in counts]
    q, k, v = (x.to(dtype).requires_grad_() for x in made)
    return q, k, v


def cut(lengths: list[int], rows: int) -> Segments:
    return Segments(torch.tensor([0, *lengths * rows]).cumsum(0).to(torch.int32), max(lengths))


def by_hand(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """One document at a time, written out."""
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    flat[1:] = [x.repeat_interleave(q.shape[2] // k.shape[2], 1) for x in flat[1:]]
    out = []
    for a, b, c in zip(*(x.split(segments.lengths) for x in flat), strict=True):
        weights = (torch.einsum("thd,shd->hts", a, b) / a.shape[-1] ** 0.5).softmax(-1)
        out.append(torch.einsum("hts,shd->thd", weights, c))
    return torch.cat(out).view_as(q)


def assert_same(found: Tensor, wanted: Tensor, inputs: Sequence[Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0), dtype=wanted.dtype)
    pairs = zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attend", [attention, sdpa.per_document, attention_reference])
@given(**SHAPES)
def test_packed_documents_equal_attention_written_out(attend, seed, lengths, rows, groups, per_group):
    inputs = make_inputs(seed, rows, sum(lengths), groups * per_group, groups)
    segments = cut(lengths, rows)
    assert_same(attend(*inputs, segments, causal=False), by_hand(*inputs, segments), inputs, 1e-10)


@pytest.mark.parametrize("attend", [attention, attention_reference, varlen.attention, flex.attention])
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), tokens=st.integers(1, 9), groups=st.integers(1, 2))
@settings(max_examples=30)
def test_a_row_without_segments_is_one_document(attend, seed, rows, tokens, groups):
    inputs = make_inputs(seed, rows, tokens, 2 * groups, groups)
    assert_same(attend(*inputs, causal=False), by_hand(*inputs, cut([tokens], rows)), inputs, 1e-10)


@given(**SHAPES)
@settings(max_examples=40, derandomize=True)
def test_low_precision_errs_no_more_than_plain_low_precision(seed, lengths, rows, groups, per_group):
    low = make_inputs(seed, rows, sum(lengths), groups * per_group, groups, torch.bfloat16)
    segments = cut(lengths, rows)
    exact: Any = [x.detach().double().requires_grad_() for x in low]
    upstream = torch.randn(low[0].shape, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def run(attend, given):
        out = attend(*given, segments, causal=False)
        assert out.dtype == given[0].dtype
        return [out.detach(), *torch.autograd.grad(out, given, upstream.to(out.dtype))]

    three = zip(run(attention_reference, exact), run(attention_reference, low), run(attention, low), strict=True)
    for wanted, plain, found in three:
        rounding = wanted.abs().max() * 2**-8 + 1e-5
        assert (found - wanted).abs().max() <= 2 * (plain - wanted).abs().max() + rounding


def test_one_call_serves_all_documents_of_a_length(monkeypatch):
    calls: list[tuple[int, ...]] = []
    real = cpu_bidirectional.flash_forward  # type: ignore[attr-defined]

    def counted(q, k, v, causal):
        calls.append(tuple(q.shape))
        return real(q, k, v, causal)

    monkeypatch.setattr(cpu_bidirectional, "flash_forward", counted)
    q, k, v = (x.detach() for x in make_inputs(0, 1, 4 * 5 + 3, 2, 2))
    attention(q, k, v, cut([4, 4, 3, 4, 0, 4, 4], 1), causal=False)
    assert sorted(calls) == [(1, 2, 3, 8), (5, 2, 4, 8)]


def test_low_precision_meets_few_shapes_and_keeps_few_scores(monkeypatch):
    """Lengths are padded, documents go in batches of a power of two, long ones in pieces."""
    shapes: set[tuple[int, ...]] = set()
    real = torch.bmm

    def noted(a, b):
        shapes.add((*a.shape, b.shape[-1]))
        return real(a, b)

    monkeypatch.setattr(torch, "bmm", noted)
    monkeypatch.setattr(cpu_bidirectional, "_SCORES", 4 * 2 * 64 * 64)
    lengths = [*range(33, 64), 1]
    q, k, v = (x.detach().bfloat16() for x in make_inputs(0, 1, sum(lengths), 2, 2))
    attention(q, k, v, cut(lengths, 1), causal=False)
    assert shapes == {(2 * n, 64, 64, 8) for n in (1, 2, 4)} | {(2, 32, 32, 8)}


@pytest.mark.parametrize("lengths", [[40, 70, 33, 64, 1], [64, 64], [1100]])
@pytest.mark.parametrize("groups", [1, 2])
def test_padded_batches_and_long_documents_are_right(lengths, groups):
    low = make_inputs(3, 2, sum(lengths), 2, groups, torch.bfloat16)
    segments = cut(lengths, 2)
    q, k, v = (x.detach().double().requires_grad_() for x in low)
    found, wanted = attention(*low, segments, causal=False), by_hand(q, k, v, segments)
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.02)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = torch.autograd.grad(found, low, upstream)
    for a, b in zip(ours, torch.autograd.grad(wanted, (q, k, v), upstream.double()), strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max() + 0.01


def test_documents_see_themselves_whole_and_nothing_else():
    q, k, v = (x.detach() for x in make_inputs(0, 1, 10, 2, 2))
    segments = cut([4, 6], 1)
    before = attention(q, k, v, segments, causal=False)
    k[:, 3] += 1
    after = attention(q, k, v, segments, causal=False)
    assert (before != after)[0, :4].all() and torch.equal(before[:, 4:], after[:, 4:])


def test_autocast_computes_in_its_dtype():
    q, k, v = (x.detach().float() for x in make_inputs(0, 1, 10, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v, cut([4, 6], 1), causal=False).dtype == torch.bfloat16


def test_the_operator_keeps_the_rules_of_custom_operators():
    q, k, v = (x.detach()[0].float().requires_grad_() for x in make_inputs(0, 1, 7, 4, 2))
    bounds = torch.tensor([0, 3, 4, 7], dtype=torch.int32)
    torch.library.opcheck(cpu_bidirectional._bidirectional, (q, k, v, bounds))


def test_the_blocks_that_flexattention_skips_hide_nothing():
    """Of 128 × 128 scores: skipped blocks hold no visible pair, whole ones nothing else."""
    for lengths in ([300], [1, 299], [130, 5, 165], [40] * 7 + [20], [128, 128, 44], [256, 44]):
        document = cut(lengths, 1).documents(1, 300)
        for causal in (True, False):
            dense = document[0][:, None] == document[0]
            dense = torch.nn.functional.pad(dense.tril() if causal else dense, (0, 84, 0, 84))
            blocks = dense.view(3, 128, 3, 128).transpose(1, 2).flatten(2)
            mask = flex.block_mask(document, causal)
            some = listed(mask.kv_num_blocks, mask.kv_indices)
            assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
            whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
            assert torch.equal(some | whole, blocks.any(-1)) and torch.equal(whole, blocks.all(-1))


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    out = torch.zeros(3, 3, dtype=torch.bool)
    for row in range(3):
        out[row, indices[0, 0, row, : counts[0, 0, row]].long()] = True
    return out


@pytest.mark.parametrize("backend", [varlen, flash_attn])
@pytest.mark.parametrize("causal", [True, False])
def test_gpu_backends_pass_it_on(backend, causal, monkeypatch):
    """The kernels' calls, checked against stand-ins that note what came."""
    import types

    import torch.nn.attention.varlen

    seen: dict[str, object] = {}

    def fake(q, k, v, *bounds, **options):
        seen.update(options)
        return attention_reference(q[None], k[None], v[None], Segments(bounds[0], 0), causal=causal)[0]

    module: Any = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = fake
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", fake)
    inputs = [x.detach().bfloat16() for x in make_inputs(0, 1, 9, 2, 2)]
    backend.attention(*inputs, cut([4, 5], 1), causal=causal)
    if backend is varlen:
        assert seen["window_size"] == ((-1, 0) if causal else (-1, -1))
    else:
        assert seen["causal"] is causal


def test_without_gradients_nothing_of_the_compiler_is_loaded() -> None:
    """torch._dynamo takes seconds to import, which a first picture should not wait for."""
    code = (
        "import sys, torch\nfrom muomni.ops.attention.cpu_bidirectional import bidirectional_attention_cpu as attend\n"
        "q = torch.randn(6, 2, 8)\nbounds = torch.tensor([0, 2, 6], dtype=torch.int32)\n"
        "for x in (q, q.bfloat16()):\n    attend(x, x, x, bounds)\n"
        "with torch.inference_mode():\n    same = attend(q, q, q, bounds)\n"
        "with torch.no_grad():\n    assert torch.equal(same, attend(q.requires_grad_(), q, q, bounds))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "out = attend(q, q, q, bounds)\nassert torch.equal(same, out) and out.requires_grad"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
