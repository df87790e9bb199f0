"""Shuffling without a table: a permutation of row numbers that is computed."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from muomni.data.arrays import Ints


def permuted(index: Ints, n: int, key: int) -> Ints:
    """Where a permutation of 0..n−1 that depends on `key` takes each index; needs no memory of size n.

    A balanced Feistel network of six rounds over the next even power of two, at least 256; results of n
    or more are put through it again until they are in range (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002).
    """
    half = max(4, ((n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    result = index.astype(np.uint64)
    out = np.ones(len(result), bool)
    while out.any():
        left, right = result[out] >> np.uint64(half), result[out] & low
        for turn in range(6):
            left, right = right, left ^ (mixed(right, key + turn + 2) & low)
        result[out] = left << np.uint64(half) | right
        out = result >= n
    return result.astype(np.int64)


def random_order(n: int, key: int) -> Ints:
    """A permutation of 0..n−1 that depends on `key` alone, not on a library's random generator."""
    return np.argsort(mixed(np.arange(n, dtype=np.uint64), key), kind="stable")


def mixed(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """A bijective scramble of 64-bit values (the finaliser of SplitMix64, Steele et al., 2014)."""
    x = values + np.uint64(key * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mixed_key(*parts: int) -> int:
    """One 64-bit key out of several numbers."""
    content = ",".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
