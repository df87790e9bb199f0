"""What a model keeps between calls: its engine, so that a conversation's beginning is read once, and its drafter."""

import threading
from typing import Any

import torch
from torch import nn

from muomni.infer.engine.engine import Engine, make_engine
from muomni.infer.speculative.draft_model import Drafter, make_drafter
from muomni.model import OmniModel
from muomni.model.module_modes import all_modules

# Requests that a kept engine has room for at least: a few conversations side by side.
_FEWEST_SLOTS = 4
_SHORTEST = 256
# Who waits is in the caller's own lists: no bound is needed.
_MOST = 1 << 30


class EngineCache:
    """Makes an engine or a drafter when one is asked for; keeps it while the weights and what is asked stay the same.

    Copies and pickles of a session are new ones: they belong to another model.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._weights: tuple[Any, ...] = ()
        self._slots = 0
        self._drafter: Drafter | None = None
        self._drafter_for: tuple[Any, ...] = ()

    def __deepcopy__(self, _: dict[int, Any]) -> "EngineCache":
        return EngineCache()

    def __reduce__(self) -> tuple[type["EngineCache"], tuple[()]]:
        return EngineCache, ()

    def engine(self, model: OmniModel, slots: int, capacity: int, dtype: torch.dtype | None = None) -> Engine:
        """An engine with at least `capacity` tokens a slot, and `slots` of them where memory allows.

        Args:
            model: whose weights may have changed since.
            slots: requests to be computed side by side.
            capacity: tokens of the longest request, prompt and reply.
            dtype: of the cache; None takes the model's.

        Raises:
            EngineError: the memory does not hold one slot.
        """
        dtype = model.dtype if dtype is None else dtype
        with self._lock:
            weights = (model.device, *fingerprint(model))
            kept = self._engine
            if kept is not None:
                enough = self._slots >= slots and kept.cache.capacity >= capacity and kept.cache.dtype == dtype
                if enough and weights == self._weights:
                    return kept
            self._engine = kept = None  # its cache is given back before the next one is made
            self._slots = max(slots, _FEWEST_SLOTS)
            whole = max(_SHORTEST, 1 << (capacity - 1).bit_length())
            room = min(whole, max(capacity, model.config.thinker.max_position_embeddings))
            self._engine = make_engine(model, slots=self._slots, capacity=room, dtype=dtype, most_waiting=_MOST)
            self._weights = weights
            return self._engine

    def drafter(self, model: OmniModel, slots: int, capacity: int) -> Drafter:
        """A drafter for an engine of this size; requests that have begun keep the one they began with.

        Args:
            model: the smaller one, whose weights may have changed since.
            slots, capacity: see `make_drafter`.

        Raises:
            EngineError: the memory does not hold one slot.
        """
        with self._lock:
            wanted = (slots, capacity, model.dtype, model.device, *fingerprint(model))
            kept = self._drafter
            if kept is None or wanted != self._drafter_for:
                self._drafter = kept = None
                self._drafter = kept = make_drafter(model, slots, capacity)
                self._drafter_for = wanted
            return kept


def fingerprint(model: nn.Module) -> tuple[object, ...]:
    """Changes when a weight is replaced or written to in place, or a module is: what an engine was made for is gone.

    Not seen are writes through `.data`, which torch hides.
    """
    found: list[object] = []
    for module in all_modules(model):
        own = module.__dict__
        # Hooks and a `forward` of its own are what some runners do not call.
        hooked = bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)
        found += (type(module), hooked)
        for tensors in (own["_parameters"], own["_buffers"]):
            for x in tensors.values():
                if x is not None:
                    found += (x.data_ptr(), 0 if x.is_inference() else x._version)
    return tuple(found)
