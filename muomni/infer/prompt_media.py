"""Media of a prompt."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class MediaChunk(NamedTuple):
    """The media of some consecutive tokens of a prompt.

    Attributes:
        features: (K, D) what the encoders made, in the place of K token embeddings.
        places: (T,) bool on the CPU, which tokens of the chunk those are.
        positions: (3, T) int64 on the CPU, of all tokens of the chunk.
    """

    features: Tensor
    places: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class PromptMedia:
    """What a prompt of T tokens holds besides text: N tokens are embeddings of pictures and sounds.

    Attributes:
        features: (N, D) on the model's device, in the order of their places.
        places: (N,) int64 on the CPU, rising.
        positions: (3, T) int64 on the CPU: time, height and width. Outside of pictures all three are the index.
        keys: T numbers that tell prompts apart where token ids do not: the token ids, but for tokens of media
            negative numbers made from their content.
    """

    features: Tensor
    places: Tensor
    positions: Tensor
    keys: list[int]

    def chunk(self, begin: int, end: int) -> MediaChunk | None:
        """The part of tokens `begin` to `end` (which may cut a picture); None where they are text."""
        first, last = torch.searchsorted(self.places, torch.tensor([begin, end])).tolist()
        if first == last:
            return None
        positions = self.positions[:, begin:end]
        places = torch.zeros(positions.shape[1], dtype=torch.bool)
        places[self.places[first:last] - begin] = True
        return MediaChunk(self.features[first:last], places, positions)
