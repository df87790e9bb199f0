"""The whole model as an `nn.Module`: what training and inference both call. Read this first.

Legend: B batch, T tokens, D hidden_size, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import OmniConfig
from muomni.errors import UserError
from muomni.model.cache import Cache
from muomni.model.quantized import Int8Embedding, Int8Weight, is_quantized
from muomni.model.thinker import Thinker
from muomni.ops.attention import Segments
from muomni.ops.loss import IGNORE, linear_cross_entropy, shift_labels

# Positions whose logits are in memory at one time where the loss is computed through a quantised head.
_LOSS_ROWS = 512


@dataclass
class OmniOutput:
    """What a forward pass gives.

    Attributes:
        logits: (B, T, V), or (B, `last`, V); None when a loss was asked for: the loss needs no logits.
        loss: scalar, when labels were given.
        hidden: (B, T, D), the states the logits are made from.
    """

    hidden: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None


class OmniModel(nn.Module):
    """Text in, text out for now; plain `nn.Linear`s throughout until it is quantised.

    Args:
        config: sizes. Weights are drawn on construction unless the model is built on `meta`.
        generator: source of the initial weights; None takes torch's default one.
    """

    def __init__(self, config: OmniConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.thinker = Thinker(config.thinker)
        if self.device.type != "meta":
            self.thinker.init_weights(generator)

    @property
    def device(self) -> torch.device:
        return self.thinker.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and of the weights unless they are int8."""
        embedding = self.thinker.embed_tokens
        return embedding.dtype if isinstance(embedding, Int8Embedding) else embedding.weight.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are int8; then the model computes and saves as ever, and does not learn."""
        return is_quantized(self)

    def forward(
        self,
        input_ids: Tensor,
        *,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        num_targets: int | Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> OmniOutput:
        """Logits, or the loss.

        Args:
            input_ids: (B, T) int64.
            labels: (B, T) int64, unshifted as in Hugging Face (`labels=input_ids` trains on
                everything), −100 where there is no loss. With labels no logits are returned.
            positions: (B, T) int64; None counts from 0, or from the cache's length.
            segments: documents of packed rows.
            num_targets: the loss is the sum over target tokens divided by this; None divides by the
                targets of this call. Training gives the number of the whole optimizer step.
            cache: a KV cache to read and extend.
            last: compute logits of this many last positions only.

        Raises:
            ValueError: an argument that would otherwise be ignored.
        """
        if labels is None and num_targets is not None:
            raise ValueError("num_targets divides the loss: give labels too")
        if labels is not None and (cache is not None or last is not None):
            raise ValueError("labels ask for a loss over whole rows: give neither cache nor last")
        hidden = self.thinker(input_ids, positions, segments, cache)
        if labels is None:
            wanted = hidden if last is None else hidden[:, -last:]
            return OmniOutput(hidden, logits=self.thinker.lm_head(wanted))
        targets = shift_labels(labels)
        total = self._total_loss(hidden.flatten(0, 1), targets.flatten())
        if num_targets is None:
            num_targets = (targets != -100).sum().clamp(min=1)
        return OmniOutput(hidden, loss=total / num_targets)

    def num_parameters(self) -> int:
        """Parameters, a tied head counted once; int8 weights count, their scales do not."""
        int8 = {id(m.weight): m.weight.numel() for m in self.modules() if isinstance(m, Int8Weight)}
        return sum(parameter.numel() for parameter in self.parameters()) + sum(int8.values())

    def _total_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of (N, D) states; a head without float weights gives its logits in pieces."""
        head = self.thinker.lm_head
        weight = head.weight
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return linear_cross_entropy(hidden, weight, targets)
        if self.training and torch.is_grad_enabled():
            raise UserError("a quantised model cannot be trained: train the float one, then quantise it again")
        pieces = zip(torch.split(hidden, _LOSS_ROWS), torch.split(targets, _LOSS_ROWS), strict=True)
        losses = [F.cross_entropy(head(x).float(), y, ignore_index=IGNORE, reduction="sum") for x, y in pieces]
        return torch.stack(losses).sum()
