"""Who computes the Talker's backbone for N rows side by side: torch's modules, or the native decoder on CPUs.

The native decoder reads tokens, and the Talker reads vectors: they are put into a buffer that is the decoder's
embedding, and the tokens are the numbers of its rows. Its head is the identity, so that what comes back is the hidden
states themselves, exactly; codes and moves are made of them by torch in both cases.

Legend: N rows, D hidden_size, L blocks, S slots.
"""

from typing import Protocol

import torch
from torch import Tensor

from muomni.infer.runners.native import layer_weights, unknown_layer
from muomni.model import SlotBatch, SlotCache
from muomni.model.layers import Block
from muomni.model.talker import Talker
from muomni.ops.native import Decoder, DecoderWeights, Library, Matrix
from muomni.ops.rope import rope_tables


class Backbone(Protocol):
    """Computes one frame of each of N rows.

    Attributes:
        cache: the keys and values of all slots.
        own_threads: whether it computes on threads of its own, see `infer.runners.base.Runner`.
        note: for the log: what computes, and why it is not something faster.
    """

    cache: SlotCache
    own_threads: bool
    note: str

    def __call__(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """One frame.

        Args:
            x: (N, D) what `Talker.inputs` gave.
            slots, positions: (N,) int64 on the CPU, each slot once.

        Returns:
            (N, D) hidden states after the last norm.
        """


class EagerBackbone:
    """torch's modules as they are: any device, any weights."""

    own_threads = False

    def __init__(self, talker: Talker, cache: SlotCache, note: str = "") -> None:
        self.cache = cache
        self.note = f"torch's modules ({note})" if note else "torch's modules"
        self._talker = talker

    def __call__(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        batch = SlotBatch(self.cache, slots, positions)
        hidden: Tensor = self._talker.backbone(x[None], positions.to(x.device)[None], cache=batch)
        return hidden[0]


class NativeBackbone:
    """The native decoder; the Talker's weights must stay as they are, or another one is to be made.

    Args:
        library: the compiled decoder.
        talker, cache: that `why_not` finds no fault with.
        threads: that work on a frame.
    """

    own_threads = True

    def __init__(self, library: Library, talker: Talker, cache: SlotCache, threads: int) -> None:
        config = talker.config.backbone
        self.cache = cache
        self.note = f"the native decoder on {threads} threads"
        self._size = config.hidden_size
        rows = max(cache.slots, self._size)
        self._inputs = torch.zeros(rows, self._size)
        weights = DecoderWeights(
            embed=Matrix(self._inputs),
            head=Matrix(torch.eye(rows, self._size)),
            final_norm=talker.norm.weight.detach().float(),
            layers=tuple(layer_weights(block) for block in talker.layers if isinstance(block, Block)),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
        )
        angles = rope_tables(torch.arange(cache.capacity)[None], config.head_dim, config.rope_theta, torch.float32)
        cos, sin = (table.reshape(cache.capacity, -1).contiguous() for table in angles)
        self._decoder = Decoder(library, weights, cache.keys, cache.values, cos, sin, threads=threads)

    def __call__(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        count = len(x)
        self._inputs[:count] = x
        rows = torch.arange(count)
        hidden = self._decoder.forward(rows, slots, positions, rows)
        return hidden[:, : self._size].to(x.dtype)


def make_backbone(talker: Talker, slots: int, capacity: int, library: Library | str) -> Backbone:
    """The fastest one this machine has for the Talker.

    Args:
        talker: in evaluation mode, as it stays.
        slots: rows side by side.
        capacity: steps of the longest sentence.
        library: the compiled decoder, or why it is not to be used.
    """
    place = talker.norm.weight
    cache = SlotCache(talker.config.backbone, slots, capacity, place.dtype, place.device)
    fault = library if isinstance(library, str) else why_not(talker, cache)
    if fault is None and not isinstance(library, str):
        return NativeBackbone(library, talker, cache, torch.get_num_threads())
    return EagerBackbone(talker, cache, fault or "")


def why_not(talker: Talker, cache: SlotCache) -> str | None:
    """What about the Talker or the cache the native decoder cannot do; None when it can do all of it."""
    if cache.device.type != "cpu":
        return f"the talker is on {cache.device}: the native decoder is for CPUs"
    if cache.dtype not in (torch.float32, torch.bfloat16):
        return f"a cache of {cache.dtype}: the native decoder knows float32 and bfloat16"
    if type(talker) is not Talker or "backbone" in talker.__dict__:
        return f"the native decoder does not know a {type(talker).__name__}"
    for name, module in (*talker.layers.named_modules(prefix="talker.layers"), ("talker.norm", talker.norm)):
        fault = unknown_layer(module)
        if fault:
            return f"{name}: {fault}"
    return None
