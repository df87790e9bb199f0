"""A whole decoder step over a `SlotCache` in operations of fixed shape, so that it can be compiled.

Legend: B rows, T tokens of a chunk, N either of them, C positions attended to, L layers, K key/value heads, H query
heads, D head_dim, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.infer.sampling import most_likely
from muomni.model import SlotCache
from muomni.model.thinker import Thinker
from muomni.ops.attention import AttentionFunction


def run_step(
    thinker: Thinker,
    cache: SlotCache,
    context: int,
    decoding: bool,
    tokens: Tensor,
    slots: Tensor,
    positions: Tensor,
    wanted: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of each of B slots, or T tokens of one slot.

    Args:
        thinker: in evaluation mode.
        cache: takes in keys and values.
        context: C, more than the largest position.
        decoding: N tokens of as many slots; else of one.
        tokens: (N,) int64 on the device; -1, which follows logits that are not finite, is taken for 0.
        slots: (N,); several rows of a decoding step may be the same.
        positions: (N,).
        wanted: (W,) int64 on the device, places in a chunk; decoding, all are.

    Returns:
        logits: (B, V) or (W, V) fp32.
        following: (B,) int64, see `most_likely`; (0,) of a chunk: the tokens of a prompt are known.
    """
    batch = _StaticBatch(cache, slots, positions, context)
    rows = 1 if decoding else 0  # the axis of length 1
    hidden = thinker(tokens.clamp(min=0).unsqueeze(rows), positions.unsqueeze(rows), cache=batch).squeeze(rows)
    logits = thinker.lm_head(hidden if decoding else hidden[wanted]).float()
    return logits, most_likely(logits) if decoding else tokens[:0]


class _StaticBatch:
    """A pass over a `SlotCache` in operations of fixed shape, as the model's `Cache`."""

    def __init__(self, cache: SlotCache, slots: Tensor, positions: Tensor, context: int) -> None:
        self._cache = cache
        self._slots = slots
        self._positions = positions
        self._context = context

    @property
    def length(self) -> int:
        raise ValueError("tokens of different slots have no common length: give their positions")

    def advance(self, count: int) -> None:
        """Lengths are the scheduler's."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionFunction) -> Tensor:
        del attention  # the backends do not know slots of a fixed length
        cache = self._cache
        self._store(cache.keys, cache.key_scales, layer, k.flatten(0, 1))
        self._store(cache.values, cache.value_scales, layer, v.flatten(0, 1))
        reach = torch.arange(self._context, device=q.device)
        decoding = q.shape[1] == 1
        slots = self._slots if decoding else self._slots[:1]
        # What nobody has written may be no number at all, which a weight of 0 would not hide.
        written = reach <= (self._positions[:, None] if decoding else self._positions.max()[None, None])
        keys = self._load(cache.keys, cache.key_scales, layer, slots, written, q.dtype)
        values = self._load(cache.values, cache.value_scales, layer, slots, written, q.dtype)
        if decoding:
            return _attend_one(q, keys, values, written)
        mask = reach <= self._positions[:, None]
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    def _store(self, storage: Tensor, scales: Tensor | None, layer: int, rows: Tensor) -> None:
        """Writes (N, K, D) into (L, slots, K, S, D); every index is a tensor, so that it is one scattered write."""
        heads = torch.arange(rows.shape[1], device=rows.device)[None]
        where = (torch.full_like(heads, layer), self._slots[:, None], heads, self._positions[:, None])
        if scales is not None:
            largest = rows.abs().amax(-1).float().clamp(min=1e-30)
            rows = (rows.float() * (127 / largest)[..., None]).round()
            scales.index_put_(where, largest / 127)
        storage.index_put_(where, rows.to(storage.dtype))

    def _load(
        self, storage: Tensor, scales: Tensor | None, layer: int, slots: Tensor, written: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """(rows, K, C, D) keys or values, 0 where nothing was written."""
        stored = storage[layer, :, :, : self._context][slots]
        if scales is not None:
            stored = stored.float() * scales[layer, :, :, : self._context][slots][..., None]
        return torch.where(written[:, None, :, None], stored.to(dtype), 0)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Attention of one query each, written as sums so that reading the cache becomes part of them.

    Args:
        q: (B, 1, H, D).
        keys: (B, K, C, D).
        values: the same.
        seen: (B, C).

    Returns:
        (B, 1, H, D).
    """
    B, K, _, D = keys.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.view(B, K, -1, 1, D).to(wide)
    scores = (grouped * keys[:, :, None].to(wide)).sum(-1) * D**-0.5
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    out = (weights[..., None] * values[:, :, None].to(wide)).sum(-2)
    heads: Tensor = out.view(B, 1, -1, D).to(q.dtype)
    return heads
