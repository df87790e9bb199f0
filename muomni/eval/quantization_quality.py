"""How far a changed model's predictions lie from those of the model it was made from.

Over the target tokens of fixed rows: both perplexities, the mean Kullback-Leibler divergence
KL(reference ‖ changed) in nats, and how often both think the same token the most likely one.

Legend: N target tokens, V vocabulary, D hidden_size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data import PackedDataset
from muomni.model import OmniModel, SlotBatch, SlotCache
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE, shift_labels

# Positions whose logits, twice (N, V) in fp32, are in memory at one time.
_POSITIONS = 128


@dataclass(frozen=True)
class Quality:
    """Predictions of a changed model beside those of its reference.

    Attributes:
        targets: tokens predicted.
        reference_perplexity, perplexity: of the reference and of the changed model.
        kl: mean KL divergence per token, in nats.
        top1: share of tokens where both models' most likely token is the same.
    """

    targets: int
    reference_perplexity: float
    perplexity: float
    kl: float
    top1: float

    @property
    def perplexity_change(self) -> float:
        """Relative: 0.005 is half a percent more."""
        return self.perplexity / self.reference_perplexity - 1


@torch.no_grad()
def compare_models(
    reference: OmniModel,
    changed: OmniModel,
    rows: PackedDataset,
    max_rows: int,
    on_update: Callable[[int], None] = lambda _: None,
) -> Quality:
    """Runs both over the first rows, one row at a time.

    Args:
        reference: in evaluation mode.
        changed: the same, on the same device, of the same vocabulary.
        rows: not shuffled, so that every call reads the same.
        max_rows: how many are read.
        on_update: called with the number of rows done.

    Raises:
        ValueError: a model is in training mode, or there is nothing to predict.
    """
    sums = _Sums(reference, changed)
    for row in range(min(max_rows, rows.num_rows)):
        batch = rows.batch(row, 1).to(reference.device)
        segments = Segments(batch.cu_seqlens, batch.max_seqlen)
        targets = shift_labels(batch.labels).flatten()
        keep = targets != IGNORE
        states = [
            model.thinker(batch.input_ids, batch.positions, segments).flatten(0, 1)[keep]
            for model in (reference, changed)
        ]
        sums.add(states, targets[keep])
        on_update(row + 1)
    return sums.quality()


@torch.inference_mode()
def compare_caches(model: OmniModel, texts: Sequence[Sequence[int]], dtype: torch.dtype = torch.int8) -> Quality:
    """What a KV cache of another dtype changes: every token of `texts` is predicted from the cache.

    Args:
        model: in evaluation mode; its own dtype is that of the reference's cache.
        texts: token ids, each within the context; those of one token predict nothing.
        dtype: of the cache.

    Raises:
        ValueError: the model is in training mode, or there is nothing to predict.
    """
    sums = _Sums(model, model)
    device = model.device
    for ids in texts:
        targets = torch.tensor(ids[1:], device=device)
        if not len(targets):
            continue
        tokens, positions = torch.tensor(ids[:-1], device=device)[None], torch.arange(len(targets))
        states = []
        for kind in (model.dtype, dtype):
            cache = SlotCache(model.config.thinker, 1, len(targets), kind, device)
            batch = SlotBatch(cache, torch.zeros_like(positions), positions)
            states.append(model.thinker(tokens, positions.to(device)[None], cache=batch)[0])
        sums.add(states, targets)
    return sums.quality()


class _Sums:
    """Losses, divergence and agreement of two models, summed over targets.

    Raises:
        ValueError: a model is in training mode.
    """

    def __init__(self, reference: OmniModel, changed: OmniModel) -> None:
        if reference.training or changed.training:
            raise ValueError("models are compared in evaluation mode")
        self._heads = reference.thinker.lm_head, changed.thinker.lm_head
        self._sums = torch.zeros(4, dtype=torch.float64, device=reference.device)
        self._targets = 0

    def add(self, states: Sequence[Tensor], targets: Tensor) -> None:
        """Adds the predictions of (N, D) states, the reference's and the changed model's, for (N,) targets."""
        self._targets += len(targets)
        for old, new, label in zip(*(torch.split(x, _POSITIONS) for x in (*states, targets)), strict=True):
            self._sums += _sums(self._heads[0](old), self._heads[1](new), label)

    def quality(self) -> Quality:
        """The means.

        Raises:
            ValueError: there was no target.
        """
        if not self._targets:
            raise ValueError("there is no token to predict")
        old_loss, new_loss, kl, same = (self._sums / self._targets).tolist()
        return Quality(self._targets, math.exp(old_loss), math.exp(new_loss), kl, same)


def _sums(reference: Tensor, changed: Tensor, targets: Tensor) -> Tensor:
    """(4,) fp64: both losses, the divergence and the agreements, summed over (N, V) logits and (N,) targets."""
    old, new = reference.float().log_softmax(-1), changed.float().log_softmax(-1)
    index = targets[:, None]
    return torch.stack(
        [
            -old.gather(1, index).sum(dtype=torch.float64),
            -new.gather(1, index).sum(dtype=torch.float64),
            (old.exp() * (old - new)).sum(dtype=torch.float64),
            (old.argmax(-1) == new.argmax(-1)).sum(dtype=torch.float64),
        ]
    )
