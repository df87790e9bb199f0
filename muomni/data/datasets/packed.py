"""Rows of a fixed length, packed full from the documents of a token index.

Every row is a pure function of (token index, seq_len, seed, number): resuming a run, or sharing the rows out
between processes, needs nothing but the index.

How it works. The token stream is cut into blocks of some 16,000 tokens, which an epoch visits in
a new order. As many blocks as make some 4 million tokens form a shard, and only a shard is ever held
in memory: its documents are cut into pieces of at most a row, the pieces are shuffled, those as long
as a row become rows of their own, and the others are strung together and cut into rows, which are
shuffled once more. So the memory needed does not depend on the size of the corpus, and a shard still
mixes pieces from all over it. What this costs is a document cut in two at the end of each block.

T = tokens in a row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.data.arrays import Ints
from muomni.data.datasets.batch import Batch, Row, collate
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.order import mixed_key, permuted, random_order
from muomni.data.index.token_index import TokenIndex

_BLOCK_TOKENS = 1 << 14
_SHARD_TOKENS = 1 << 22


class PackedDataset(Dataset[Batch]):
    """Random access to packed rows, counted on over the epochs: row i is in epoch i // num_rows.

    Every token of the index is in exactly one row of each epoch. The last row of an epoch may be short;
    it is filled with padding that forms a segment of its own and is not learnt. A document that a row's
    end cuts goes on in another row as a new segment.

    Args:
        index: where the tokens are.
        seq_len: T, at least 2.
        seed: of the order.
        shuffle: False keeps the order of the index, the same in every epoch.
    """

    def __init__(self, index: TokenIndex, seq_len: int, seed: int = 0, shuffle: bool = True) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len ({seq_len}) must be at least 2, or nothing can be predicted")
        self.index = index
        self.seq_len = seq_len
        self.seed = seed
        self.shuffle = shuffle
        # Blocks and shards are whole numbers of rows, so a row lies in one shard.
        self._block = seq_len * max(8, _BLOCK_TOKENS // seq_len)
        self._blocks_per_shard = max(1, _SHARD_TOKENS // self._block)
        self._shard: tuple[tuple[int, int], _Shard] | None = None

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return -(-self.index.num_tokens // self.seq_len)

    def row(self, index: int) -> Row:
        """The row of an index ≥ 0, counted over all epochs."""
        if index < 0:
            raise IndexError(f"row {index} does not exist")
        epoch, in_epoch = divmod(index, self.num_rows)
        number, in_shard = divmod(in_epoch, self._blocks_per_shard * self._block // self.seq_len)
        # A local name: another thread may put another shard in its place meanwhile.
        held = self._shard
        if held is None or held[0] != (epoch, number):
            self._shard = None  # so that two are not held at once
            held = ((epoch, number), self._load(epoch, number))
            self._shard = held
        return held[1].row(in_shard, self.seq_len, self.index.pad_id)

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        """See `Dataset.batch`."""
        rows = [self.row(first_index + n * stride) for n in range(count)]
        return collate(rows, self.batch_id(first_index, count, stride))

    @cached_property
    def key(self) -> str:
        """Names the rows."""
        return f"{self.index.fingerprint} {self.seq_len} {self.seed} {self.shuffle}"

    def _load(self, epoch: int, number: int) -> "_Shard":
        """Shard `number` of an epoch."""
        total = self.index.num_tokens
        first = number * self._blocks_per_shard
        last = min(first + self._blocks_per_shard, -(-total // self._block))
        if not self.shuffle:
            begin, end = first * self._block, min(last * self._block, total)
            return self._read([(begin, end)])
        blocks = np.arange(first, last)
        whole = total // self._block
        # The short block at the end of the index keeps its place, so that all others fill theirs.
        moved = blocks < whole
        blocks[moved] = permuted(blocks[moved], whole, mixed_key(self.seed, epoch, 0))
        begins = blocks * self._block
        read = self._read([(int(begin), min(int(begin) + self._block, total)) for begin in begins])
        return read.shuffled(self.seq_len, mixed_key(self.seed, epoch, 1 + number))

    def _read(self, ranges: list[tuple[int, int]]) -> "_Shard":
        """The tokens of some ranges of the index one behind the other, unshuffled."""
        index = self.index
        tokens = np.concatenate([index.tokens[begin:end] for begin, end in ranges])
        mask = index.mask
        learnt = None if mask is None else np.concatenate([mask[begin:end] for begin, end in ranges])
        starts = []
        done = 0
        for begin, end in ranges:
            inner = index.starts_between(begin + 1, end) - begin
            starts += [np.array([done]), inner + done]
            done += end - begin
        index.release()
        return _Shard(tokens, learnt, np.concatenate(starts), None)


@dataclass(frozen=True)
class _Shard:
    """Tokens of consecutive rows.

    Attributes:
        tokens: (n,) in the cache's dtype.
        learnt: (n,) uint8; None for all.
        starts: sorted indices where a segment begins.
        order: row r of the shard is the r-th of these rows of `tokens`; None for r itself.
    """

    tokens: NDArray[Any]
    learnt: NDArray[np.uint8] | None
    starts: Ints
    order: Ints | None

    def row(self, number: int, T: int, pad_id: int) -> Row:
        from muomni.ops.cross_entropy import IGNORE

        begin = T * (number if self.order is None else int(self.order[number]))
        tokens = self.tokens[begin : begin + T].astype(np.int64)
        first, last = np.searchsorted(self.starts, [begin + 1, begin + T])
        starts = np.concatenate([[0], self.starts[first:last] - begin])
        labels = tokens.copy()
        if self.learnt is not None:
            labels[self.learnt[begin : begin + T] == 0] = IGNORE
        missing = T - len(tokens)
        if missing:
            starts = np.append(starts, len(tokens))
            tokens = np.pad(tokens, (0, missing), constant_values=pad_id)
            labels = np.pad(labels, (0, missing), constant_values=IGNORE)
        labels[starts] = IGNORE
        return Row(tokens, labels, starts)

    def shuffled(self, T: int, key: int) -> "_Shard":
        """The same tokens in pieces of at most T, in an order drawn from `key`."""
        ends = np.append(self.starts[1:], len(self.tokens))
        counts = -(-(ends - self.starts) // T)
        before = np.cumsum(counts) - counts
        pieces = np.repeat(self.starts - before * T, counts) + np.arange(counts.sum()) * T
        lengths = np.minimum(T, np.repeat(ends, counts) - pieces)
        order = random_order(len(pieces), key)
        # Pieces as long as a row come first, so that rows and pieces coincide there.
        order = order[np.argsort(lengths[order] != T, kind="stable")]
        pieces, lengths = pieces[order], lengths[order]
        starts = np.cumsum(lengths) - lengths
        source = np.repeat(pieces - starts, lengths)
        source += np.arange(len(self.tokens))
        rows = len(self.tokens) // T
        # A short row, which only the last shard has, stays the last.
        row_order = np.arange(-(-len(self.tokens) // T))
        row_order[:rows] = random_order(rows, key ^ 1)
        learnt = None if self.learnt is None else self.learnt[source]
        return _Shard(self.tokens[source], learnt, starts, row_order)
