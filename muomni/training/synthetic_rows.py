"""Full rows of random tokens, for timing a step without data.

Legend: B rows, T tokens of a row.
"""

import torch
from torch import Tensor

from muomni.data import Batch, Dataset
from muomni.ops.cross_entropy import IGNORE


def full_rows(ids: Tensor, document_length: int = 0) -> Batch:
    """A batch of (B, T) ids, each row one document, or cut into documents of one length, the last one shorter."""
    B, T = ids.shape
    length = document_length or T
    positions = torch.arange(T, device=ids.device) % length
    labels = ids.masked_fill(positions == 0, IGNORE)
    starts = torch.cat([torch.arange(0, T, length) + row * T for row in range(B)])
    bounds = torch.cat([starts, torch.tensor([B * T])]).to(ids.device, torch.int32)
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=positions.expand(B, T),
        cu_seqlens=bounds,
        max_seqlen=min(length, T),
        num_targets=int((labels != IGNORE).sum()),
        id="synthetic",
    )


class RandomRows(Dataset[Batch]):
    """A dataset of random tokens.

    Args:
        num_rows: rows in an epoch.
        seq_len: T.
        vocab_size: ids are below it.
    """

    def __init__(self, num_rows: int, seq_len: int, vocab_size: int) -> None:
        self._num_rows = num_rows
        self._seq_len = seq_len
        self._vocab_size = vocab_size

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self._num_rows

    @property
    def key(self) -> str:
        """Names the rows."""
        return f"random {self._num_rows} × {self._seq_len} below {self._vocab_size}"

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:  # noqa: ARG002 - as in `Dataset`
        """`count` rows; the same for the same `first_index`."""
        draw = torch.Generator().manual_seed(first_index)
        return full_rows(torch.randint(self._vocab_size, (count, self._seq_len), generator=draw))
