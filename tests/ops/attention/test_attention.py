"""Attention: every backend that runs here equals the definition, forward and backward."""

import inspect
import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.ops.attention import Segments, attention, attention_reference, flash_attn, flex, sdpa, varlen
from muomni.ops.attention.cpu_cached import cached_attention_cpu


def per_document(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """What `sdpa` does with packed rows on devices that have no kernel for them."""
    return attention(q, k, v) if segments is None else sdpa.per_document(q, k, v, segments)


def in_two_calls(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """What `sdpa` does on a CPU when many queries come after many keys."""
    if segments is not None or k.shape[1] == q.shape[1]:
        return attention(q, k, v, segments)
    return cached_attention_cpu(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


cached = pytest.mark.parametrize("attend", [attention, in_two_calls])
EVERYWHERE = [attention, per_document]
every_backend = pytest.mark.parametrize("attend", EVERYWHERE, ids=["sdpa", "per_document"])


def make_inputs(seed: int, batch: int, queries: int, keys: int, heads: int, groups: int, size: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int, count: int) -> torch.Tensor:
        return torch.randn(batch, length, count, size, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(queries, heads), draw(keys, groups), draw(keys, groups)


def cut(lengths: list[int], rows: int) -> Segments:
    """Segments of `rows` equal rows, each cut into `lengths`."""
    bounds = torch.tensor([0, *lengths * rows]).cumsum(0).to(torch.int32)
    return Segments(bounds, max(lengths))


def assert_same(attend: Any, inputs: Any, segments: Segments | None = None) -> None:
    q, k, v = inputs
    fast, slow = attend(q, k, v, segments), attention_reference(q, k, v, segments)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    upstream = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def assert_errs_no_more_than_plain(attend, inputs, seed: int, segments=None, backward: bool = True) -> None:
    """The rule of flash-attention's own tests: error ≤ 2 × that of the plain low-precision path, plus one rounding.

    Like there, on fixed cases. A flash kernel takes Σ dO·O from the output as it was rounded, so where a tiny
    case's gradient nearly cancels it errs by more than the plain path, which sums before it rounds: over
    thousands of random cases the rule does not hold for torch's CPU kernel (docs/LOG.md).
    """
    low = [x.detach().bfloat16().requires_grad_(backward) for x in inputs]
    exact = [x.detach().double().requires_grad_(backward) for x in low]
    upstream = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def run(function, given):
        out = function(*given, segments)
        return [out.detach(), *(torch.autograd.grad(out, given, upstream.to(out.dtype)) if backward else ())]

    references = run(attention_reference, exact)
    plain, fast = run(attention_reference, low), run(attend, low)
    for reference, slow, quick in zip(references, plain, fast, strict=True):
        # Where a query sees one key, gradients cancel to zero exactly or up to the order of an fp32 sum.
        rounding = reference.abs().max() * 2**-8 + 1e-5
        assert (quick - reference).abs().max() <= 2 * (slow - reference).abs().max() + rounding


@cached
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    queries=st.integers(1, 12),
    past=st.integers(0, 12),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    size=st.sampled_from([2, 8, 16]),
)
def test_causal_attention_equals_its_definition(attend, seed, batch, queries, past, groups, per_group, size):
    assert_same(attend, make_inputs(seed, batch, queries, queries + past, groups * per_group, groups, size))


def test_the_definition_aligns_the_queries_at_the_end():
    """Written out once by hand: with equal scores a query averages the values of the keys it sees."""
    q, k, v = torch.zeros(1, 2, 1, 2), torch.zeros(1, 4, 1, 2), torch.tensor([[1.0, 3.0, 5.0, 11.0]])
    v = v[..., None, None].expand(1, 4, 1, 2)
    for attend in (attention_reference, attention, in_two_calls):
        assert attend(q, k, v)[0, :, 0, 0].tolist() == [3.0, 5.0]


@every_backend
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    rows=st.integers(1, 3),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
)
def test_packed_documents_equal_the_definition(attend, seed, lengths, rows, groups, per_group):
    inputs = make_inputs(seed, rows, sum(lengths), sum(lengths), groups * per_group, groups, 8)
    assert_same(attend, inputs, cut(lengths, rows))


@every_backend
def test_a_document_sees_nothing_of_its_neighbours(attend):
    q, k, v = make_inputs(0, 1, 10, 10, 4, 2, 8)
    segments = cut([4, 6], 1)
    whole = attend(q, k, v, segments)
    torch.testing.assert_close(whole[:, 4:], attention(q[:, 4:], k[:, 4:], v[:, 4:]), rtol=0, atol=1e-12)
    changed = k.detach().clone()
    changed[:, :4] += 1
    assert torch.equal(attend(q, changed, v, segments)[:, 4:], whole[:, 4:])


@every_backend
def test_empty_documents_pad_the_list_of_bounds(attend):
    q, k, v = make_inputs(0, 1, 6, 6, 2, 1, 8)
    padded = Segments(torch.tensor([0, 2, 6, 6, 6], dtype=torch.int32), 4)
    assert torch.equal(attend(q, k, v, padded), attend(q, k, v, cut([2, 4], 1)))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_rounded_segments_are_the_same_documents_in_few_shapes(lengths):
    segments = cut(lengths, 1)
    total = sum(lengths)
    rounded = segments.rounded(total)
    assert torch.equal(rounded.documents(1, total), segments.documents(1, total))
    assert rounded.cu_seqlens.dtype == torch.int32
    assert len(rounded.cu_seqlens) in (16, 32, 64) and len(rounded.cu_seqlens) < max(17, 2 * len(lengths) + 2)
    assert rounded.max_seqlen == 128
    assert Segments(segments.cu_seqlens, 300).rounded(total).max_seqlen == 512


@pytest.mark.parametrize("backend", [sdpa, varlen, flash_attn, flex], ids=lambda module: module.__name__[-10:])
def test_packed_rows_refuse_more_keys_than_queries(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn())
    q, k, v = make_inputs(0, 1, 4, 6, 2, 1, 8)
    with pytest.raises(ValueError, match="4 queries but 6 keys"):
        backend.attention(q, k, v, cut([4], 1))


@pytest.mark.parametrize("name", ["varlen", "cached"])
def test_the_custom_operators_are_well_formed(name):
    """Torch's own checks: schema, fake shapes, autograd registration, and dynamic shapes under compile."""
    from muomni.ops.attention.cpu_cached import _cached
    from muomni.ops.attention.cpu_varlen import _varlen

    if name == "varlen":
        q, k, v = (x.detach()[0].float().requires_grad_() for x in make_inputs(0, 1, 7, 7, 4, 2, 8))
        torch.library.opcheck(_varlen, (q, k, v, torch.tensor([0, 3, 7], dtype=torch.int32)))
    else:
        inputs = (x.detach().float().transpose(1, 2).requires_grad_() for x in make_inputs(0, 2, 3, 7, 4, 2, 8))
        torch.library.opcheck(_cached, tuple(inputs))


@every_backend
@given(
    seed=st.integers(0, 2**31), lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4), rows=st.integers(1, 2)
)
@settings(max_examples=50, derandomize=True)  # fixed cases, see assert_errs_no_more_than_plain
def test_packed_documents_in_bf16_err_no_more_than_plain_bf16_attention(attend, seed, lengths, rows):
    inputs = make_inputs(seed, rows, sum(lengths), sum(lengths), 4, 2, 16)
    assert_errs_no_more_than_plain(attend, inputs, seed, cut(lengths, rows))


@cached
@given(seed=st.integers(0, 2**31), queries=st.integers(1, 80), past=st.integers(0, 150), rows=st.integers(1, 2))
@settings(max_examples=50, derandomize=True)  # fixed cases, see assert_errs_no_more_than_plain
def test_cached_keys_in_bf16_err_no_more_than_plain_bf16_attention(attend, seed, queries, past, rows):
    assert_errs_no_more_than_plain(attend, make_inputs(seed, rows, queries, queries + past, 4, 2, 16), seed)


def test_bf16_gradients_stay_finite_beside_a_document_of_other_scale():
    """The rows behind a document are its neighbour's; their weights must not overflow into it."""
    q, k, v = (x.detach() for x in make_inputs(0, 1, 40, 40, 2, 1, 16))
    q[:, :3] *= 1e-3
    k[:, :3] *= 1e3
    q[:, 3:] *= 1e3
    inputs = q, k, v = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = attention(q, k, v, cut([3, 37], 1))
    for gradient in torch.autograd.grad(out, inputs, torch.ones_like(out)):
        assert torch.isfinite(gradient).all()


def test_a_past_and_a_present_of_other_scale_merge_without_overflow():
    q, k, v = (x.detach().float() for x in make_inputs(0, 1, 5, 12, 2, 1, 16))
    for scale_past, scale_own in ((1e3, 1e-3), (1e-3, 1e3), (-1e3, 1e3)):
        keys = torch.cat((k[:, :7] * scale_past, k[:, 7:] * scale_own), 1)
        got, wanted = in_two_calls(q, keys, v), attention_reference(q.double(), keys.double(), v.double())
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_casts_as_it_does_for_sdpa(packed, dtype, monkeypatch):
    q, k, v = (x.detach().to(dtype) for x in make_inputs(0, 1, 6, 6, 2, 1, 8))
    segments = cut([2, 4], 1) if packed else None
    if not packed:
        q = q[:, :4]
        monkeypatch.setattr(sdpa, "_SMALL_MASK", 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v, segments).dtype == attention(q[:, :1], k, v).dtype


def largest_allocation(function, *inputs) -> int:
    """Bytes of the largest tensor made on the way, inside custom operators too."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function(*inputs)
    return max(event.self_cpu_memory_usage for event in profiled.events())


def test_no_dense_mask_is_ever_made():
    """Not even one byte for each of 2048 × 2048 scores; the definition, which makes them all, shows what is seen."""
    tokens = 2048
    with torch.no_grad():
        q, k, v = (x.detach().float() for x in make_inputs(0, 1, tokens, tokens, 2, 1, 8))
        segments = cut([64] * 32, 1)
        dense = tokens * tokens
        assert largest_allocation(attention_reference, q, k, v, segments) >= 4 * dense
        assert largest_allocation(attention, q, k, v, segments) < dense
        assert largest_allocation(per_document, q, k, v, segments) < dense
        assert largest_allocation(lambda: flex.block_mask(segments.documents(1, tokens))) < dense
        assert largest_allocation(attention, q[:, 24:], k, v) < dense


# FlexAttention compiles, for seconds: one compiled kernel serves every example, since only documents differ.


@given(
    seed=st.integers(0, 2**31), lengths=st.lists(st.integers(1, 400), min_size=1, max_size=5), rows=st.integers(1, 2)
)
def test_the_block_mask_is_the_one_torch_makes_from_the_dense_mask(seed, lengths, rows):
    from torch.nn.attention.flex_attention import create_block_mask

    total = sum(lengths)
    document = cut(lengths, rows).documents(rows, total)
    ours = flex.block_mask(document)
    wanted = create_block_mask(
        lambda b, h, query, key: (key <= query) & (document[b, query] == document[b, key]),
        *(rows, 1, total, total),
        device="cpu",
    )
    assert torch.equal(ours.kv_num_blocks, wanted.kv_num_blocks)
    assert ours.full_kv_num_blocks is not None and wanted.full_kv_num_blocks is not None
    assert torch.equal(ours.full_kv_num_blocks, wanted.full_kv_num_blocks)
    assert torch.equal(ours.to_dense(), wanted.to_dense())
    assert ours.shape == wanted.shape


def flex_runs_here() -> str | None:
    import shutil

    if shutil.which("g++") is None:
        return "FlexAttention needs a C++ compiler"
    return None if torch.cpu._is_avx2_supported() else "FlexAttention on a CPU needs AVX2"


@pytest.mark.skipif(flex_runs_here() is not None, reason=str(flex_runs_here()))
def test_flex_equals_the_definition_forward_and_has_no_backward_on_a_cpu():
    tokens = 300
    for seed, lengths in enumerate(([300], [1, 299], [130, 5, 165], [40] * 7 + [20])):
        segments = cut(lengths, 2)
        inputs = make_inputs(seed, 2, tokens, tokens, 4, 2, 16)
        q, k, v = (x.detach().float() for x in inputs)
        wanted = attention_reference(q.double(), k.double(), v.double(), segments)
        torch.testing.assert_close(flex.attention(q, k, v, segments).double(), wanted, rtol=0, atol=1e-5)
        assert_errs_no_more_than_plain(flex.attention, inputs, seed, segments, backward=False)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex.attention(q.requires_grad_(), k, v, segments)


# The GPU kernels' calls, checked against stand-ins with their signatures; the kernels:
# tests/accel/test_attention_backend.py.


def bottom_right(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor) -> Tensor:
    assert torch.equal(bounds, key_bounds)
    return attention_reference(q[None], k[None], v[None], Segments(bounds, 0))[0]


def fake_flash_attn() -> types.ModuleType:
    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal):
        assert causal and max_seqlen_q == max_seqlen_k >= int(cu_seqlens_q.diff().max())
        return bottom_right(q, k, v, cu_seqlens_q, cu_seqlens_k)

    module: Any = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    return module


def patch_kernels(monkeypatch) -> None:
    real = inspect.signature(torch.nn.attention.varlen.varlen_attn)

    def fake(*args, **kwargs):
        a = real.bind(*args, **kwargs).arguments
        assert a["window_size"] == (-1, 0) and a["enable_gqa"] == (a["query"].shape[1] != a["key"].shape[1])
        assert a["max_q"] == a["max_k"] >= int(a["cu_seq_q"].diff().max())
        return bottom_right(a["query"], a["key"], a["value"], a["cu_seq_q"], a["cu_seq_k"])

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", fake)
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn())


@pytest.mark.parametrize("backend", [varlen, flash_attn])
@pytest.mark.parametrize("groups", [2, 4])
def test_gpu_backends_say_what_they_mean(backend, groups, monkeypatch):
    import torch.nn.attention.varlen

    patch_kernels(monkeypatch)
    inputs = q, k, v = [x.detach().bfloat16() for x in make_inputs(0, 2, 9, 9, 4, groups, 8)]
    segments = cut([2, 7], 2)
    wanted = attention_reference(q, k, v, segments)
    torch.testing.assert_close(backend.attention(*inputs, segments), wanted)
    torch.testing.assert_close(backend.attention(*inputs, segments.rounded(18)), wanted)
    # Not packed: SDPA.
    assert torch.equal(backend.attention(*inputs), attention(*inputs))
    wide = [x.float() for x in inputs]
    with pytest.raises(ValueError, match="bf16 or fp16 but was given torch.float32"):
        backend.attention(*wide, segments)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backend.attention(*wide, segments), wanted)
