"""What computes a step of the Thinker (`Runner`) or of the Talker (`Backbone`): protocols and their eager forms.

It computes over slots of a KV cache: as many as the memory holds. The engine's requests, a draft model's and the
sentences of speech all live in such slots.

A *flattened batch* is N tokens, each with its slot and its position: chunks of prompts and single tokens of
running replies, mixed, without padding. Keys and values of the whole batch are stored before anybody attends;
a token attends to positions 0 .. its own of its slot, so causality is by position.

Legend: N tokens of a batch or rows of the Talker, M of them whose logits are wanted, V vocabulary, B rows,
D hidden_size.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from muomni.accel.device import free_memory
from muomni.config import ThinkerConfig
from muomni.errors import EngineError
from muomni.infer.prompt_media import MediaChunk
from muomni.infer.sampling import most_likely
from muomni.model import OmniModel, SlotBatch, SlotCache
from muomni.model.kv_cache import slot_bytes
from muomni.model.talker import Talker


class Runner(Protocol):
    """Computes steps over one `SlotCache`; runners over the same one may take turns at any step.

    Attributes:
        can_greedy: whether `greedy` is faster than as many calls of `forward`.
        own_threads: whether it computes on threads of its own, which torch's threads, spinning for a while after
            each operation, would keep from their cores.
        batch_invariant: logits of a token do not depend, bit by bit, on the other tokens of the batch.
        note: what the log should know of it; empty where its name says all.
    """

    can_greedy: bool
    own_threads: bool
    batch_invariant: bool

    @property
    def note(self) -> str: ...

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One step.

        Args:
            tokens, slots, positions: (N,) int64 on the CPU. The tokens of one slot stand together and in order.
            wanted: (M,) int64 on the CPU, places in the batch, rising.

        Returns:
            (M, V) fp32 logits on the model's device.
        """

    def greedy(self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int) -> Tensor:
        """Each of B rows of different slots goes on by `steps` tokens, always the most likely one.

        Args:
            tokens, slots, positions: (B,) int64 on the CPU: the newest token of each row, its slot and position.
            steps: at least 1.

        Returns:
            (B, steps) int64 on the CPU; -1 where a logit is NaN or infinite, and what follows it means nothing.
        """


class EagerRunner:
    """torch's modules as they are: any device, any weights.

    Args:
        model: in evaluation mode while it is used.
        cache: on the model's device.
    """

    can_greedy = False
    own_threads = False
    batch_invariant = False
    note = ""

    def __init__(self, model: OmniModel, cache: SlotCache) -> None:
        self._model = model
        self._cache = cache

    def forward(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor, media: MediaChunk | None = None
    ) -> Tensor:
        """See `Runner`; with `media`, some of the tokens are embeddings of pictures and sounds."""
        thinker, device = self._model.thinker, self._cache.device
        batch = SlotBatch(self._cache, slots, positions)
        if media is None:
            hidden = thinker(tokens.to(device)[None], positions.to(device)[None], cache=batch)[0]
        else:
            x = thinker.embed_tokens(tokens.to(device))
            x = x.index_copy(0, media.places.to(device), media.features.to(x.dtype))
            axes = media.positions.to(device)[:, None]
            hidden = thinker(inputs_embeds=x[None], positions=axes, cache=batch)[0]
        if len(wanted) != len(tokens):
            hidden = hidden[wanted.to(device)]
        logits: Tensor = thinker.lm_head(hidden)
        return logits.float()

    def greedy(self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int) -> Tensor:
        out = torch.empty(len(tokens), steps, dtype=torch.int64)
        wanted = torch.arange(len(tokens))
        for step in range(steps):
            tokens = most_likely(self.forward(tokens.clamp(min=0), slots, positions + step, wanted)).cpu()
            out[:, step] = tokens
        return out


class Backbone(Protocol):
    """Computes frames of the Talker over one `SlotCache`; backbones over the same one may take turns at any frame.

    Attributes:
        cache: the keys and values of all slots.
        own_threads, note: see `Runner`.
    """

    cache: SlotCache
    own_threads: bool

    @property
    def note(self) -> str: ...

    def hidden(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """One frame of each of N rows.

        Args:
            x: (N, D) what `Talker.inputs` gave.
            slots, positions: (N,) int64 on the CPU, each slot once.

        Returns:
            (N, D) hidden states after the last norm.
        """


class EagerBackbone:
    """torch's modules as they are: any device, any weights.

    Args:
        talker: in evaluation mode while it is used.
        cache: on the Talker's device.
    """

    own_threads = False
    note = ""

    def __init__(self, talker: Talker, cache: SlotCache) -> None:
        self.cache = cache
        self._talker = talker

    def hidden(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        batch = SlotBatch(self.cache, slots, positions)
        hidden: Tensor = self._talker.backbone(x[None], positions.to(x.device)[None], cache=batch)
        return hidden[0]


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Operations of torch inside compute on the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

    def reset(self, held: Collection[int] = ()) -> None:
        """All slots are free but those `held`."""
        order = dict.fromkeys((*self._free, *range(self.count)))
        self._free = {slot: None for slot in order if slot not in held}
