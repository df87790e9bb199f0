"""What makes tokens less likely that have come already.

Legend: R rows, V vocabulary.
"""

import torch
from torch import Tensor


class TokenCounts:
    """How often each token is in the reply of each row, and whether it is in its prompt.

    One number holds both: twice the times in the reply, and one more for a token of the prompt.

    Args:
        rows: how many.
        vocabulary: of the model.
        device: of the logits.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._table = torch.zeros(rows, vocabulary, dtype=torch.int32, device=device)

    def begin(self, row: int, prompt: Tensor, reply: Tensor | None = None) -> None:
        """Forgets what a row has held and counts (T,) and (N,) int64 ids anew."""
        counts = self._table[row].zero_()
        counts[prompt] = 1
        if reply is not None and len(reply):
            counts.index_add_(0, reply, torch.full_like(reply, 2, dtype=torch.int32))

    def of(self, rows: Tensor) -> Tensor:
        """(R, V) int32 for (R,) int64 rows."""
        return self._table.index_select(0, rows)

    def add(self, rows: Tensor, tokens: Tensor) -> None:
        """Counts one more token, (R,) int64, of the reply of each of (R,) rows."""
        self._table[rows, tokens] += 2


def penalise(
    logits: Tensor,
    counts: Tensor,
    repetition: Tensor | float | None,
    frequency: Tensor | float | None = None,
    presence: Tensor | float | None = None,
) -> Tensor:
    """Logits with the penalties of `SamplingParams`; a penalty is (R, 1) or a number, None does nothing.

    Args:
        logits: (R, V) fp32.
        counts: (R, V) int32, see `TokenCounts`.
        repetition: of tokens in prompt or reply.
        frequency: for each time in the reply.
        presence: once for each token in the reply.
    """
    if repetition is not None:
        # One of both parts is 0. A choice by the sign, which is as good as random, takes a CPU three times as long.
        changed = logits.clamp(min=0).div_(repetition).add_(logits.clamp(max=0).mul_(repetition))
        logits = torch.where(counts != 0, changed, logits)
    if frequency is not None:
        logits = logits - (counts >> 1) * frequency
    if presence is not None:
        logits = logits - (counts > 1) * presence
    return logits
