"""Latents to codes and back: finite scalar quantisation (Mentzer et al., arXiv:2309.15505), a few numbers a code.

There is no table to learn: every number of the latents is squeezed into −1 to 1 and rounded to one of its levels,
and the rounded numbers of a group are the digits of its code. So no code dies and no running means have to be kept
or agreed on between processes.

Legend: B rows, T frames, K codebooks, G numbers in a code, L = K·G.
"""

import math

import torch
from torch import Tensor, nn

from muomni.config.codec import CodecConfig


class Quantizer(nn.Module):
    """K codes a frame, each of the same levels. Has no weights."""

    levels: Tensor
    places: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.num_codebooks = config.num_codebooks
        self.codebook_size = config.codebook_size
        self.nested = config.nested
        places = [math.prod(config.levels[:n]) for n in range(len(config.levels))]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds, and lets gradients pass as if it had not.

        In training some rows keep only their first codes, see `CodecConfig.nested`.

        Args:
            latents: (B, T, L) of the encoder.

        Returns:
            (B, T, L) as the decoder takes them, and (B, K, T) int64 codes.
        """
        squeezed = torch.tanh(latents)
        digits = self._digits(squeezed)
        rounded = self._values(digits, latents.dtype).flatten(2)
        values = squeezed + (rounded - squeezed).detach()
        if self.training and self.nested:
            values = values * self._kept(values)
        codes = (digits * self.places).sum(-1).transpose(1, 2)
        return values, codes

    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, K, T) codes, each from 0 to codebook_size, to (B, T, L) as the decoder takes them."""
        digits = codes.transpose(1, 2)[..., None] // self.places % self.levels
        return self._values(digits, dtype).flatten(2)

    def _digits(self, squeezed: Tensor) -> Tensor:
        """(B, T, K, G) int64: which of equally wide levels each number lies in."""
        B, T, _ = squeezed.shape
        grouped = squeezed.detach().view(B, T, self.num_codebooks, -1)
        digits = ((grouped + 1) * (self.levels / 2)).long()
        return torch.minimum(digits.clamp(min=0), self.levels - 1)

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        """The middle of each level, −1 to 1."""
        return (digits.to(dtype) * 2 + 1) / self.levels - 1

    def _kept(self, values: Tensor) -> Tensor:
        """(B, 1, L) ones, and zeros for the codes that a row goes without."""
        B, _, L = values.shape
        K = self.num_codebooks
        count = torch.randint(1, K + 1, (B, 1), device=values.device)
        all_of_them = torch.rand(B, 1, device=values.device) >= self.nested
        kept = (torch.arange(K, device=values.device) < count) | all_of_them
        return kept.repeat_interleave(L // K, dim=1)[:, None].to(values.dtype)
