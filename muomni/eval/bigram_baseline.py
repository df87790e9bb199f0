"""The baseline a trained model has to beat: a bigram model on the same tokens."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.data import PackedDataset
from muomni.ops.cross_entropy import IGNORE, shift_labels

_BATCH = 64
_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

Ints = NDArray[np.int64]


class Bigram:
    """P(b | a) = (count(a, b) + k · P(b)) / (count(a) + k), where P(b) is the add-one unigram.

    With P(b) uniform and k = V this is plain add-one smoothing; backing off to the unigram does far
    better on a vocabulary of thousands, so the baseline is a fair one.

    Args:
        rows: training rows; one epoch is counted.
        vocab_size: V.
        max_rows: count only this many rows; None counts all.
    """

    def __init__(self, rows: PackedDataset, vocab_size: int, max_rows: int | None = None) -> None:
        self.vocab_size = vocab_size
        pairs = np.concatenate([a * vocab_size + b for a, b in _pairs(rows, max_rows)])
        self._keys, self._counts = np.unique(pairs, return_counts=True)
        first, second = np.divmod(pairs, vocab_size)
        self._first_counts = np.bincount(first, minlength=vocab_size)
        unigram = np.bincount(second, minlength=vocab_size) + 1
        self._unigram = unigram / unigram.sum()

    def bits_per_byte(self, rows: PackedDataset, byte_lengths: Tensor, max_rows: int) -> tuple[float, float]:
        """The best value over a grid of k, and that k.

        k is chosen on these very rows, which favours the baseline.

        Args:
            rows: validation rows, read as `training.evaluate` reads them.
            byte_lengths: (V,) bytes of each token.
            max_rows: rows that are read.
        """
        pairs = list(_pairs(rows, max_rows))
        first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
        num_bytes = int(byte_lengths[torch.from_numpy(second)].sum())
        found = np.searchsorted(self._keys, keys := first * self.vocab_size + second).clip(max=len(self._keys) - 1)
        counts = np.where(self._keys[found] == keys, self._counts[found], 0)
        scores = {}
        for k in _STRENGTHS:
            probabilities = (counts + k * self._unigram[second]) / (self._first_counts[first] + k)
            scores[k] = float(-np.log2(probabilities).sum()) / max(1, num_bytes)
        best = min(scores, key=scores.__getitem__)
        assert math.isfinite(scores[best])
        return scores[best], best


def _pairs(rows: PackedDataset, max_rows: int | None) -> Iterator[tuple[Ints, Ints]]:
    """Each target token of the rows with the token before it."""
    count = rows.num_rows if max_rows is None else min(max_rows, rows.num_rows)
    for start in range(0, count, _BATCH):
        batch = rows.batch(start, min(_BATCH, count - start))
        targets = shift_labels(batch.labels)
        counted = targets != IGNORE
        yield batch.input_ids[counted].numpy(), targets[counted].numpy()
