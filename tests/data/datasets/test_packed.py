"""Packed rows: every token once, documents kept apart, and nothing but the index decides."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import Batch, PackedDataset, TokenIndex
from muomni.data.datasets import packed
from muomni.data.datasets.order import mixed_key, permuted, random_order
from muomni.ops.cross_entropy import IGNORE
from tests.data.helpers import numbered_index

LENGTHS = st.lists(st.integers(1, 12) | st.integers(1, 150), min_size=1, max_size=40)


def small_rows(cache: TokenIndex, seq_len: int, seed: int = 0, shuffle: bool = True, blocks: int = 2) -> PackedDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_BLOCK_TOKENS", 1)
        patch.setattr(packed, "_SHARD_TOKENS", blocks * 8 * seq_len)
        return PackedDataset(cache, seq_len, seed, shuffle)


@settings(max_examples=60)
@given(
    lengths=LENGTHS,
    seq_len=st.integers(2, 20),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
    blocks=st.integers(1, 3),
)
def test_what_every_epoch_holds(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    seq_len: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    blocks: int,
) -> None:
    total = sum(lengths)
    learnt = (np.random.default_rng(total).random(total) < 0.7).astype(int).tolist()
    cache = numbered_index(tmp_path_factory.mktemp("cache"), lengths, learnt)
    rows = small_rows(cache, seq_len, seed, shuffle, blocks)
    document = np.repeat(np.arange(len(lengths)), lengths)
    count = rows.num_rows
    batch = rows.batch(epoch * count, count)
    bounds = batch.cu_seqlens.tolist()
    ids, labels, positions = (x.flatten().numpy() for x in (batch.input_ids, batch.labels, batch.positions))
    real = ids != cache.pad_id

    assert sorted(ids[real]) == list(range(total)), "every token once"
    assert len(ids) - total < seq_len, "padding fills up one row at most"
    assert (batch.input_ids[:-1] != cache.pad_id).all(), "and that is the last one"

    assert bounds == sorted(set(bounds)) and bounds[0] == 0 and bounds[-1] == count * seq_len
    assert set(range(0, count * seq_len, seq_len)) <= set(bounds), "a row's end ends a segment"
    for begin, end in pairwise(bounds):
        segment = ids[begin:end]
        assert positions[begin:end].tolist() == list(range(end - begin))
        assert labels[begin] == IGNORE
        if segment[0] == cache.pad_id:
            assert (segment == cache.pad_id).all() and (labels[begin:end] == IGNORE).all()
            continue
        assert (np.diff(segment) == 1).all(), "a segment is a stretch of the cache"
        assert len(set(document[segment])) == 1, "of one document"
        expected = [int(i) if learnt[i] else IGNORE for i in segment[1:]]
        assert labels[begin + 1 : end].tolist() == expected
    assert batch.max_seqlen == max(np.diff(bounds))
    assert batch.num_targets == (labels != IGNORE).sum() == (batch.labels[:, 1:] != IGNORE).sum()
    assert batch.num_tokens == count * seq_len


@settings(max_examples=40)
@given(lengths=LENGTHS, seq_len=st.integers(2, 20), picks=st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_a_row_depends_on_its_index_alone(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int, picks: list[int]
) -> None:
    cache = numbered_index(tmp_path_factory.mktemp("cache"), lengths)
    rows = small_rows(cache, seq_len, seed=3)
    for index in picks:
        here, fresh = rows.row(index), small_rows(cache, seq_len, seed=3).row(index)
        for name in ("tokens", "labels", "starts"):
            assert (getattr(here, name) == getattr(fresh, name)).all()


def same(a: Batch, b: Batch) -> bool:
    names = ("input_ids", "labels", "positions", "cu_seqlens")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.fixture
def cache(tmp_path: Path) -> TokenIndex:
    lengths = np.random.default_rng(0).integers(2, 60, 400).tolist()
    return numbered_index(tmp_path, lengths)


def test_processes_share_the_rows_of_one(cache: TokenIndex) -> None:
    rows = small_rows(cache, 16)
    whole = rows.batch(10, 12)
    shares = [small_rows(cache, 16).batch(10 + rank, 4, stride=3) for rank in range(3)]
    assert torch.equal(torch.stack([share.input_ids for share in shares], dim=1).flatten(0, 1), whole.input_ids)
    assert sum(share.num_targets for share in shares) == whole.num_targets
    assert len({share.id for share in (*shares, whole)}) == 4


def test_ids_name_the_content(cache: TokenIndex, tmp_path: Path) -> None:
    rows = small_rows(cache, 16)
    first = rows.batch(0, 4)
    again = small_rows(cache, 16).batch(0, 4)
    assert first.id == again.id and same(first, again)
    others = [
        rows.batch(4, 4),
        rows.batch(0, 5),
        rows.batch(0, 4, stride=2),
        small_rows(cache, 16, seed=1).batch(0, 4),
        small_rows(cache, 16, shuffle=False).batch(0, 4),
        small_rows(cache, 15).batch(0, 4),
    ]
    assert len({first.id, *(batch.id for batch in others)}) == 7


def test_each_epoch_and_seed_has_its_own_order(cache: TokenIndex) -> None:
    rows = small_rows(cache, 16)
    count = rows.num_rows
    epochs = [rows.batch(epoch * count, count).input_ids for epoch in range(2)]
    other = small_rows(cache, 16, seed=1).batch(0, count).input_ids
    for a, b in ((epochs[0], epochs[1]), (epochs[0], other)):
        assert (a == b).float().mean() < 0.1


def test_shuffled_rows_mix_the_whole_corpus(cache: TokenIndex) -> None:
    """The first shard is a sixth of the tokens, from all over."""
    rows = small_rows(cache, 16, blocks=16)
    assert rows.num_rows > 500
    sources = rows.batch(0, 8 * 16).input_ids.flatten().numpy() / cache.num_tokens
    assert sources.std() > 0.15
    near = rows.batch(0, 16).input_ids.float().mean(1)
    assert near.std() > 0.08 * cache.num_tokens


def test_each_epoch_puts_other_blocks_and_pieces_together(cache: TokenIndex) -> None:
    rows = small_rows(cache, 16)
    shards = [set(rows.batch(epoch * rows.num_rows, 16).input_ids.flatten().tolist()) for epoch in range(20)]
    assert sum(len(a & b) for a, b in pairwise(shards)) < 0.1 * sum(map(len, shards)), "other blocks"
    whole = PackedDataset(cache, 16)  # a single shard
    count = whole.num_rows
    orders = [whole.batch(epoch * count, count).input_ids for epoch in range(2)]
    assert (orders[0] == orders[1]).float().mean() < 0.1, "another order inside"


def test_full_rows_and_mixed_ones_take_turns(tmp_path: Path) -> None:
    cache = numbered_index(tmp_path, [16 * 50] + [4] * 200)
    batch = PackedDataset(cache, 16).batch(0, 100)
    full = (batch.positions == torch.arange(16)).all(1)
    assert full.sum() == 50
    assert 10 < full[:50].sum() < 40


def test_in_order_without_shuffling(cache: TokenIndex) -> None:
    rows = small_rows(cache, 16, shuffle=False)
    count = rows.num_rows
    ids = rows.batch(0, count).input_ids.flatten()[: cache.num_tokens]
    assert torch.equal(ids, torch.arange(cache.num_tokens))
    assert same(rows.batch(0, count), rows.batch(count, count))


def test_pieces_as_long_as_a_row_fill_one(tmp_path: Path) -> None:
    """One giant document trains with the full context."""
    cache = numbered_index(tmp_path, [16 * 40, 5, 7])
    batch = small_rows(cache, 16).batch(0, 41)
    assert (batch.positions[:40] == torch.arange(16)).all()


def test_a_cache_shorter_than_a_row(tmp_path: Path) -> None:
    cache = numbered_index(tmp_path, [3, 2])
    rows = PackedDataset(cache, 8)
    assert rows.num_rows == 1
    batch = rows.batch(0, 2)
    assert batch.num_targets == 6
    assert batch.cu_seqlens.tolist()[3] == 8
    assert sorted(batch.input_ids[1].tolist()) == [0, 1, 2, 3, 4, *[cache.pad_id] * 3]


@pytest.mark.parametrize("shuffle", [True, False])
def test_what_is_held_does_not_grow_with_the_cache(tmp_path: Path, shuffle: bool) -> None:
    held = []
    for n, documents in enumerate((100, 3000)):
        cache = numbered_index(tmp_path / str(n), [30] * documents)
        rows = small_rows(cache, 16, shuffle=shuffle)
        sizes = []
        for index in range(0, rows.num_rows, 7):
            rows.row(index)
            assert rows._shard is not None
            shard: Any = rows._shard[1]
            sizes.append(sum(x.nbytes for x in (shard.tokens, shard.starts, shard.order) if x is not None))
        held.append(max(sizes))
    assert held[1] <= 1.2 * held[0]


def test_types(cache: TokenIndex) -> None:
    batch = PackedDataset(cache, 16).batch(0, 3)
    assert [x.dtype for x in (batch.input_ids, batch.labels, batch.positions)] == [torch.int64] * 3
    assert batch.cu_seqlens.dtype == torch.int32
    assert isinstance(batch.max_seqlen, int) and isinstance(batch.num_targets, int)
    moved = batch.to("cpu")
    assert same(moved, batch) and moved.id == batch.id
    meta = batch.to("meta")
    assert {x.device.type for x in (meta.input_ids, meta.labels, meta.positions, meta.cu_seqlens)} == {"meta"}


def test_what_cannot_be(cache: TokenIndex) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        PackedDataset(cache, 1)
    with pytest.raises(IndexError, match="row -1"):
        PackedDataset(cache, 8).row(-1)


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutations(n: int, key: int) -> None:
    everything = np.arange(n)
    assert sorted(permuted(everything, n, key)) == everything.tolist()
    assert sorted(random_order(n, key)) == everything.tolist()
    some = everything[:: max(1, n // 7)]
    assert (permuted(some, n, key) == permuted(everything, n, key)[some]).all()


def test_permutations_look_random() -> None:
    n = 1000
    for order in (permuted(np.arange(n), n, 5), random_order(n, 5)):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.1
        assert (np.abs(np.diff(order)) == 1).mean() < 0.02
    assert (permuted(np.arange(n), n, 5) == permuted(np.arange(n), n, 6)).mean() < 0.02


@pytest.mark.parametrize("n", [3, 5, 10, 50])
def test_keys_give_every_order_alike(n: int) -> None:
    """What the first two indices become, over many keys: each pair about as often."""
    keys = 600
    found = np.array([permuted(np.arange(2), n, mixed_key(7, epoch, 0)) for epoch in range(keys)])
    for values, outcomes in ((found[:, 0], n), ((found[:, 1] - found[:, 0]) % n - 1, n - 1)):
        counts = np.bincount(values, minlength=outcomes)
        expected = keys / outcomes
        assert ((counts - expected) ** 2 / expected).sum() < outcomes + 6 * (2 * outcomes) ** 0.5


def test_orders_stay_the_same_between_versions() -> None:
    """A resumed run must see the same rows after an upgrade, so these numbers must not change."""
    assert random_order(10, 1).tolist() == [3, 5, 7, 4, 1, 2, 8, 9, 6, 0]
    assert permuted(np.arange(10), 10, 1).tolist() == [0, 7, 1, 6, 5, 4, 9, 3, 8, 2]
