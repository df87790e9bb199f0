"""Key/value caches. A cache comes into the model as an argument; it owns storage, position and what may be seen.

* `KVCache`: rows that advance together, for `generate`'s plain loop.
* `SlotCache`: slots of different lengths, one a request. `SlotBatch` is one forward pass over it.

Legend: L layers, B batch, K key/value heads, H query heads, S capacity in tokens, T new tokens, D head_dim,
N tokens of a flattened batch.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from muomni.config import ThinkerConfig
from muomni.errors import UserError
from muomni.ops.attention import AttentionFunction


class Cache(Protocol):
    """What the model asks of a cache."""

    @property
    def length(self) -> int:
        """Tokens stored so far; the next token's position."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionFunction) -> Tensor:
        """Stores (B, T, K, D) keys and values behind those of `layer` and attends to all of them.

        Args:
            layer: which of the L.
            q: (B, T, H, D).
            k: (B, T, K, D), of the new tokens; keys after norm and rotation.
            v: as `k`.
            attention: the backend.

        Returns:
            (B, T, H, D).
        """

    def advance(self, count: int) -> None:
        """Counts `count` tokens as stored, once every layer has stored them."""


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
        """Tokens stored so far."""
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens that fit (into a slot)."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, T, K, D) keys and values behind those of `layer`; returns all of them, (B, length + T, K, D)."""
        end = self._length + k.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} do not fit")
        self.keys[layer, :, :, self._length : end] = k.transpose(1, 2)
        self.values[layer, :, :, self._length : end] = v.transpose(1, 2)
        return self.keys[layer, :, :, :end].transpose(1, 2), self.values[layer, :, :, :end].transpose(1, 2)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionFunction) -> Tensor:
        """See `Cache`."""
        return attention(q, *self.append(layer, k, v))

    def advance(self, count: int) -> None:
        """See `Cache`."""
        self._length += count

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on, so that another continuation can be tried."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot cut a cache of {self._length} tokens to {length}")
        self._length = length


class SlotCache:
    """Storage for many requests, one a slot, allocated once. Grouped heads are stored once.

    Keys and values of position p of slot s lie at [l, s, :, p]; keys are stored after norm and rotation.
    A slot's length is known to whoever schedules it: what lies behind it is never read.

    With dtype int8 each position of each head has a scale of its own, x ≈ int8 · scale with
    scale = max|x| / 127: 1/4 + 1/D of the bytes of fp32.

    Args:
        config: gives layers, key/value heads and head size.
        slots: requests that are held at once, running ones and finished ones whose beginning may be of use again.
        capacity: S, tokens of one slot.
        dtype: of the storage, fixed from here on: float32, bfloat16, float16, float64 or int8.
        device: of the storage.

    Attributes:
        keys, values: (L, slots, K, S, D), contiguous.
        key_scales, value_scales: (L, slots, K, S) float32 for int8, else None.
    """

    def __init__(
        self,
        config: ThinkerConfig,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1 or capacity < 1:
            raise ValueError(f"a cache needs room: {slots} slots of {capacity} tokens")
        if not dtype.is_floating_point and dtype != torch.int8:
            raise ValueError(f"a cache of {dtype} is not supported: take a float type or int8")
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, capacity, config.head_dim)
        # Memory that no request has reached yet is not touched, so on a CPU the system has not given it yet.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.key_scales = torch.empty(shape[:-1], device=device) if dtype == torch.int8 else None
        self.value_scales = torch.empty(shape[:-1], device=device) if dtype == torch.int8 else None

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that fit (into a slot)."""
        return self.keys.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Of the storage."""
        return self.keys.dtype

    @property
    def device(self) -> torch.device:
        """Of the storage."""
        return self.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def copy(self, source: int, target: int, length: int) -> None:
        """Puts the first `length` tokens of one slot into another."""
        for tensor in self._tensors():
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.keys, self.values, self.key_scales, self.value_scales) if t is not None]


def check_places(blocks: Iterable[Any], config: ThinkerConfig) -> None:
    """Refuses blocks that would overwrite each other's keys and values, as copied ones do.

    Raises:
        UserError: two of them have one place in a cache, or one has none.
    """
    places = [block.self_attn.layer for block in blocks if hasattr(block, "self_attn")]
    if len({*places} & {*range(config.num_hidden_layers)}) < len(places):
        raise UserError(
            f"blocks have the places {places} in a KV cache of {config.num_hidden_layers}: after adding, copying or "
            "removing blocks set self_attn.layer of each to a number of its own, and num_hidden_layers of the "
            "configuration to how many there are"
        )


def slot_bytes(config: ThinkerConfig, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of one slot of a `SlotCache`."""
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads * capacity
    return heads * (config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0))


_FEW = 64


class Span(NamedTuple):
    """Consecutive tokens of one slot inside a flattened batch.

    Attributes:
        slot: where they belong.
        begin, end: their places in the batch.
        position: of the first of them.
    """

    slot: int
    begin: int
    end: int
    position: int

    @property
    def length(self) -> int:
        """Tokens of the slot once these are stored."""
        return self.position + self.end - self.begin


class SlotBatch:
    """One forward pass over N tokens of any slots, as the model's `Cache`; the rows (B, T) are (1, N).

    Keys and values of the whole batch are stored before anybody attends; a token sees positions 0 .. its own
    of its slot.

    Args:
        cache: the storage.
        slots, positions: (N,) int64 on the CPU; tokens of one slot that follow one another are one `Span`, and
            what a span does not hold of its slot's beginning is in the cache already.

    Raises:
        ValueError: a slot or position that the cache does not have.
    """

    def __init__(self, cache: SlotCache, slots: Tensor, positions: Tensor) -> None:
        self._cache = cache
        self.spans = find_spans(slots, positions)
        for span in self.spans:
            if not (0 <= span.slot < cache.slots and span.position >= 0 and span.length <= cache.capacity):
                raise ValueError(f"{span} does not fit {cache.slots} slots of {cache.capacity} tokens")
        self._slots = slots.to(cache.device, non_blocking=True)
        self._positions = positions.to(cache.device, non_blocking=True)

    @property
    def length(self) -> int:
        """Not known: see the error."""
        raise ValueError("tokens of different slots have no common length: give their positions")

    def advance(self, count: int) -> None:
        """Lengths are the scheduler's."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionFunction) -> Tensor:
        """See `Cache`."""
        cache = self._cache
        self._store(cache.keys[layer], None if cache.key_scales is None else cache.key_scales[layer], k)
        self._store(cache.values[layer], None if cache.value_scales is None else cache.value_scales[layer], v)
        parts = []
        for span in self.spans:
            keys = self._load(cache.keys, cache.key_scales, layer, span, k.dtype)
            values = self._load(cache.values, cache.value_scales, layer, span, v.dtype)
            parts.append(attention(q[:, span.begin : span.end], keys, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _store(self, storage: Tensor, scales: Tensor | None, new: Tensor) -> None:
        """Writes (1, N, K, D) into (slots, K, S, D)."""
        rows = new[0]
        if scales is not None:
            largest = rows.abs().amax(-1).float().clamp_(min=1e-30)
            rows = (rows.float() * (127 / largest)[..., None]).round_().to(torch.int8)
            scales[self._slots, :, self._positions] = largest / 127
        if len(self.spans) == 1:  # one copy instead of a scattered write: a third of the time
            span = self.spans[0]
            storage[span.slot, :, span.position : span.length] = rows.transpose(0, 1)
        else:
            storage[self._slots, :, self._positions] = rows.to(storage.dtype)

    def _load(self, storage: Tensor, scales: Tensor | None, layer: int, span: Span, dtype: torch.dtype) -> Tensor:
        """(1, length, K, D): all that the span's last token sees."""
        stored = storage[layer, span.slot, :, : span.length]
        if scales is not None:
            stored = (stored.float() * scales[layer, span.slot, :, : span.length, None]).to(dtype)
        return stored.transpose(0, 1)[None]


def find_spans(slots: Tensor, positions: Tensor) -> list[Span]:
    """Cuts a flattened batch where the slot changes or a position does not follow the one before.

    Args:
        slots: (N,) int64 on the CPU: reading them waits for nothing.
        positions: as `slots`.
    """
    if len(slots) <= _FEW:  # a decode step: numbers are handled faster than tensors
        spans: list[Span] = []
        for place, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            last = spans[-1] if spans else None
            if last is not None and last.slot == slot and last.length == position:
                spans[-1] = Span(slot, last.begin, place + 1, last.position)
            else:
                spans.append(Span(slot, place, place + 1, position))
        return spans
    breaks = (slots.diff() != 0) | (positions.diff() != 1)
    begins = [0, *(breaks.nonzero().flatten() + 1).tolist()]
    ends = [*begins[1:], len(slots)]
    firsts = torch.stack((slots, positions))[:, begins].tolist()
    return [Span(*span) for span in zip(firsts[0], begins, ends, firsts[1], strict=True)]
