"""Slots of a KV cache: as many as the memory holds, and which of them are free.

The engine's requests, a draft model's and the sentences of speech all live in such slots.
"""

import torch

from muomni.accel.device import free_memory
from muomni.config import ThinkerConfig
from muomni.errors import EngineError
from muomni.model import SlotCache
from muomni.model.kv_cache import slot_bytes


def make_slot_cache(
    config: ThinkerConfig,
    slots: int,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device,
    share: float,
    name: str,
    remedy: str,
) -> SlotCache:
    """A cache that takes at most `share` of the memory that is free.

    Args:
        config: sizes of the decoder.
        slots: as many as fit, up to this many.
        capacity: tokens of a slot.
        dtype, device: of the storage.
        share: of the free memory, 0 to 1.
        name, remedy: what the cache is of, and what to do, for the error.

    Raises:
        EngineError: not even one slot fits.
    """
    needed, free = slot_bytes(config, capacity, dtype), free_memory(device)
    fitting = int(free * share // needed)
    if fitting < 1:
        raise EngineError(
            f"the KV cache of {name} takes {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free: {remedy}"
        )
    return SlotCache(config, min(slots, fitting), capacity, dtype, device)


class Slots:
    """The free slots, the least recently used one first.

    Args:
        count: of all slots.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: dict[int, None] = dict.fromkeys(range(count))

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def __contains__(self, slot: int) -> bool:
        return slot in self._free

    def take(self, slot: int | None = None, but: int | None = None) -> int:
        """Takes `slot`, or the least recently used one other than `but`; there is one."""
        if slot is None:
            slot = next(free for free in self._free if free != but)
        del self._free[slot]
        return slot

    def release(self, slot: int) -> None:
        """The slot is free."""
        self._free[slot] = None
