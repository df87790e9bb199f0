"""The KV cache changes the time, not the answer: cached = uncached, class *exact* for tokens."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.config import OmniConfig, ThinkerConfig
from muomni.infer import SamplingParams, generate
from muomni.model import KVCache, OmniModel
from muomni.ops.attention import Segments


@st.composite
def models(draw: st.DrawFn) -> OmniModel:
    keys = draw(st.sampled_from([1, 2]))
    thinker = ThinkerConfig(
        vocab_size=draw(st.integers(8, 60)),
        hidden_size=draw(st.sampled_from([16, 24])),
        intermediate_size=32,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=keys * draw(st.sampled_from([1, 3])),
        num_key_value_heads=keys,
        head_dim=draw(st.sampled_from([4, 8])),
        max_position_embeddings=40,
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=0.3,
    )
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(draw(st.integers(0, 999)))).eval()


sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.5, 1.3]),
        "top_k": st.sampled_from([0, 5]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "min_p": st.sampled_from([0.0, 0.02]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "seed": st.integers(0, 999),
    }
)


@settings(max_examples=40)
@given(models(), sampling, st.integers(1, 4), st.integers(1, 12), st.integers(0, 999))
def test_tokens_with_and_without_the_cache_are_the_same(
    model: OmniModel, chosen: dict[str, Any], batch: int, length: int, seed: int
) -> None:
    ids = torch.randint(model.config.thinker.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(max_new_tokens=15, **chosen)
    assert torch.equal(generate(model, ids, params), generate(model, ids, params, use_cache=False))


@settings(max_examples=30)
@given(models(), st.integers(1, 3), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_logits_do_not_depend_on_how_the_tokens_are_fed(model: OmniModel, batch: int, chunks: list[int]) -> None:
    total = sum(chunks)
    thinker = model.config.thinker
    ids = torch.randint(thinker.vocab_size, (batch, total), generator=torch.Generator().manual_seed(total))
    cache = KVCache(thinker, batch, total + 3)
    with torch.inference_mode():
        parts = [model(part, cache=cache).logits for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, rtol=1e-5, atol=1e-5)
    assert cache.length == total


def fixed_model() -> OmniModel:
    thinker = ThinkerConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=100,
        initializer_range=0.3,
    )
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(0)).eval()


def test_the_cache_is_allocated_once_and_written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[KVCache] = []
    returned: list[Tensor] = []
    start, append = KVCache.__init__, KVCache.append

    def spy_start(self: KVCache, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        made.append(self)
        addresses.append((self.keys.data_ptr(), self.values.data_ptr()))

    def spy_append(self: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out = append(self, layer, k, v)
        returned.extend(out)
        return out

    addresses: list[tuple[int, int]] = []
    monkeypatch.setattr(KVCache, "__init__", spy_start)
    monkeypatch.setattr(KVCache, "append", spy_append)
    generate(fixed_model(), torch.ones(2, 5, dtype=torch.int64), SamplingParams(max_new_tokens=30))
    (cache,) = made
    assert cache.capacity == 35
    assert [(cache.keys.data_ptr(), cache.values.data_ptr())] == addresses
    storages = {cache.keys.untyped_storage().data_ptr(), cache.values.untyped_storage().data_ptr()}
    assert {tensor.untyped_storage().data_ptr() for tensor in returned} == storages
    # Key and value heads are stored once, not once per query head.
    assert cache.nbytes == 2 * (2 * 2 * 2 * 35 * 8) * 4


def test_a_cut_cache_continues_like_a_new_one() -> None:
    model = fixed_model()
    ids = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(1))
    other = torch.randint(30, (2, 4), generator=torch.Generator().manual_seed(2))
    cache = KVCache(model.config.thinker, 2, 20)
    with torch.inference_mode():
        model(ids, cache=cache)
        cache.truncate(8)
        assert cache.length == 8
        got = model(other, cache=cache).logits
        torch.testing.assert_close(got, model(torch.cat((ids[:, :8], other), 1)).logits[:, 8:], rtol=1e-5, atol=1e-5)


def test_misuse_is_an_error() -> None:
    model = fixed_model()
    thinker = model.config.thinker
    ids = torch.ones(1, 4, dtype=torch.int64)
    for batch, capacity in ((0, 5), (1, 0)):
        with pytest.raises(ValueError, match="needs room"):
            KVCache(thinker, batch, capacity)
    cache = KVCache(thinker, 1, 6)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="holds 6 tokens; 8 do not fit"):
        model(ids, cache=cache)
    for length in (-1, 5):
        with pytest.raises(ValueError, match=f"cannot cut a cache of 4 tokens to {length}"):
            cache.truncate(length)
    with pytest.raises(ValueError, match="neither cache nor logits_to_keep"):
        model(ids, labels=ids, cache=cache)
    segments = Segments(torch.tensor([0, 4], dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="packed rows cannot be cached"):
        model(ids, segments=segments, cache=KVCache(thinker, 1, 6))


def test_rows_of_another_batch_size_do_not_fit() -> None:
    model = fixed_model()
    with pytest.raises(RuntimeError):
        model(torch.ones(3, 2, dtype=torch.int64), cache=KVCache(model.config.thinker, 2, 6))
