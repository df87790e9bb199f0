"""A row, and a batch of rows as tensors.

B = rows in a batch, T = tokens in a row, N = segments in a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from muomni.data.arrays import Ints
from muomni.data.datasets.media_loading import Loaded, media_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from muomni.model.inputs import MediaBatch
    from muomni.model.talker.batch import SpeechBatch


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        tokens: (T,) int64, placeholders repeated.
        labels: (T,) int64, see `Batch.labels`.
        starts: sorted positions where a segment begins; the first is 0.
        positions: (3, T) int64; None where they count from 0 in each segment.
        media: pictures and sounds in the order of their places, decoded.
        bad: names of media that could not be read, with the reason; `bad_documents` are the numbers of their documents.
    """

    tokens: Ints
    labels: Ints
    starts: Ints
    positions: Ints | None = None
    media: Sequence[Loaded] = ()
    bad: Sequence[str] = ()
    bad_documents: Sequence[int] = ()


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64, the token itself as in Hugging Face's models, which shift inside; −100
            where no loss is taken: outside answers, in padding, and on the first token of a segment,
            which nothing in its segment predicts.
        positions: (B, T) int64, from 0 in each segment; (3, B, T) where there are pictures: time, height, width.
        cu_seqlens: (N + 1,) int32, where segments begin in the flattened B·T tokens, and B·T.
            The end of a row ends a segment.
        max_seqlen: tokens of the longest segment.
        num_targets: labels other than −100.
        id: names the rows and how they were made; equal ids mean equal content.
        media: the pictures and sounds whose places the tokens hold, in the order of those places; None
            where there are none.
        bad: names of the media that could not be read, with the reason. Their documents are padding in
            these rows and nothing is learnt from them.
        bad_documents: numbers of those documents in the data.
        speech: pairs of text and speech that go with the rows; None where there are none.
    """

    input_ids: "Tensor"
    labels: "Tensor"
    positions: "Tensor"
    cu_seqlens: "Tensor"
    max_seqlen: int
    num_targets: int
    id: str
    media: "MediaBatch | None" = None
    bad: tuple[str, ...] = ()
    bad_documents: tuple[int, ...] = ()
    speech: "SpeechBatch | None" = None

    @property
    def num_tokens(self) -> int:
        """B·T."""
        return self.input_ids.numel()

    def to(self, device: "torch.device | str") -> "Batch":
        """The batch on a device; to a GPU the copies run beside the computation."""
        import torch

        device = torch.device(device)

        def moved(tensor: "Tensor") -> "Tensor":
            pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
            return pinned.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            labels=moved(self.labels),
            positions=moved(self.positions),
            cu_seqlens=moved(self.cu_seqlens),
            media=None if self.media is None else self.media.to(device),
            speech=None if self.speech is None else self.speech.to(device),
        )


def collate(rows: Sequence[Row], name: str) -> Batch:
    """The rows as one batch.

    Args:
        rows: all of one length.
        name: the batch's `id`.
    """
    import torch

    from muomni.ops.cross_entropy import IGNORE

    B, T = len(rows), len(rows[0].tokens)
    bounds = np.concatenate([*(n * T + row.starts for n, row in enumerate(rows)), [B * T]])
    lengths = np.diff(bounds)
    labels = np.stack([row.labels for row in rows])
    media = media_of([loaded for row in rows for loaded in row.media])
    axes = [row.positions for row in rows if row.positions is not None]
    if axes and media is not None and media.images is not None:
        positions = np.stack(axes, axis=1)
    else:
        positions = (np.arange(B * T) - np.repeat(bounds[:-1], lengths)).reshape(B, T)
    return Batch(
        input_ids=torch.from_numpy(np.stack([row.tokens for row in rows])),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        num_targets=int((labels != IGNORE).sum()),
        id=name,
        media=media,
        bad=tuple(reason for row in rows for reason in row.bad),
        bad_documents=tuple(number for row in rows for number in row.bad_documents),
    )
