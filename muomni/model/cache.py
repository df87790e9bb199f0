"""Key/value caches. A cache comes into the model as an argument and owns storage and position.

Legend: L layers, B batch, K key/value heads, S capacity in tokens, T new tokens, D head_dim.
"""

from typing import Protocol

import torch
from torch import Tensor

from muomni.config import ThinkerConfig


class Cache(Protocol):
    """What the model asks of a cache."""

    @property
    def length(self) -> int:
        """Tokens stored so far; the next token's position."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, T, K, D) keys and values behind those of `layer`; returns all of them, (B, length + T, K, D)."""

    def advance(self, count: int) -> None:
        """Counts `count` tokens as stored, once every layer has appended them."""


class KVCache:
    """Storage for `capacity` tokens, allocated once: appending writes in place and never copies the past.

    Args:
        config: gives layers, key/value heads (stored once, not per query head) and head size.
        batch: B, rows that advance together.
        capacity: S.
        dtype, device: of the storage, fixed from here on.
    """

    def __init__(
        self,
        config: ThinkerConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache needs room: batch {batch}, capacity {capacity}")
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self._length + k.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} do not fit")
        self.keys[layer, :, :, self._length : end] = k.transpose(1, 2)
        self.values[layer, :, :, self._length : end] = v.transpose(1, 2)
        return self.keys[layer, :, :, :end].transpose(1, 2), self.values[layer, :, :, :end].transpose(1, 2)

    def advance(self, count: int) -> None:
        self._length += count

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on, so that another continuation can be tried."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot cut a cache of {self._length} tokens to {length}")
        self._length = length
