"""Latents to codes and back: a residual vector quantiser whose tables follow the latents.

Codebook k rounds what the codebooks before it left over (as in SoundStream, arXiv:2107.03312), so the first codes say
the most. A vector of a table is a running mean of what it stood for; the encoder is drawn to the tables by the
commitment loss. A code that hardly occurs any more becomes one of the step's own leftovers.

Statistics of a step add up over its micro-batches, and `update` applies them once.

Legend: B rows, T frames, N = B·T, K codebooks, V codebook_size, L latent_size.
"""

import torch
from torch import Tensor, nn

from muomni.config.codec import CodecConfig

# Of the running means, per optimizer step.
_DECAY = 0.97
# A code that occurs less often than this share of the mean is dead.
_DEAD = 0.1
# Codes of an untrained quantiser have occurred 0 times, and are divided by this.
_LEAST = 1e-8


class ResidualVectorQuantizer(nn.Module):
    """K codes a frame. Its tables are buffers: no gradient reaches them.

    Attributes:
        counts: (K, V) running mean of how often each code occurs in a step; all 0 before the first.
        sums: (K, V, L) running mean of the sum of what each stood for.
    """

    counts: Tensor
    sums: Tensor
    seen_counts: Tensor
    seen_sums: Tensor
    leftovers: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        K, V, L = config.num_codebooks, config.codebook_size, config.latent_size
        self.quantizer_dropout = config.quantizer_dropout
        self.register_buffer("counts", torch.zeros(K, V))
        self.register_buffer("sums", torch.zeros(K, V, L))
        # Of the step under way: they are empty wherever a checkpoint is written.
        self.register_buffer("seen_counts", torch.zeros(K, V), persistent=False)
        self.register_buffer("seen_sums", torch.zeros(K, V, L), persistent=False)
        self.register_buffer("leftovers", torch.zeros(K, V, L), persistent=False)
        self._begun = False

    @property
    def tables(self) -> Tensor:
        """(K, V, L) what each code stands for."""
        return self.sums / self.counts.clamp(min=_LEAST)[..., None]

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rounds, and lets gradients pass as if it had not.

        In training some rows keep only their first codes, see `CodecConfig.quantizer_dropout`.

        Args:
            latents: (B, T, L) of the encoder.

        Returns:
            (B, T, L) as the decoder takes them, (B, K, T) int64 codes, and the commitment loss: how far the latents
            are from that, squared, the mean over frames and numbers summed over rows.
        """
        B, T, L = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            left = latents.detach().reshape(B * T, L).to(self.sums.dtype)
            if self.training and not self._begun:
                self._begin(left)
            kept = self._kept(B, T, latents.device)
            tables, rounded, codes = self.tables, torch.zeros_like(left), []
            for k, table in enumerate(tables):
                code = _nearest(left, table)
                step = table[code]
                if kept is not None:
                    self._see(k, left, code, kept > k)
                    step = step * (kept > k)[:, None]
                rounded, left = rounded + step, left - step
                codes.append(code.view(B, T))
            values = rounded.view(B, T, L).to(latents.dtype)
            commitment = (latents - values).square().mean((1, 2)).sum()
            return latents + (values - latents).detach(), torch.stack(codes, 1), commitment

    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, K, T) codes, each from 0 to codebook_size, to (B, T, L) as the decoder takes them."""
        # Only what is asked for is divided, not the tables.
        at = torch.arange(len(self.counts), device=codes.device)[:, None, None], codes.transpose(0, 1)
        vectors: Tensor = self.sums[at] / self.counts[at].clamp(min=_LEAST)[..., None]
        return vectors.sum(0).to(dtype)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the tables to what the forward passes since the last call saw, and revives dead codes."""
        # A step with non-finite latents is left out here as by the optimizer; nothing waits for the device.
        share = torch.where(self.seen_sums.isfinite().all(), 1 - _DECAY, 0.0)
        self.counts.lerp_(self.seen_counts, share)
        self.sums.lerp_(self.seen_sums.nan_to_num(0, 0, 0), share)
        self.leftovers.nan_to_num_(0, 0, 0)
        mean = self.counts.mean(1, keepdim=True)
        dead = self.counts < _DEAD * mean
        # One that is revived has some steps to prove itself.
        revived = (mean / 2).expand_as(self.counts)
        self.counts.copy_(torch.where(dead, revived, self.counts))
        self.sums.copy_(torch.where(dead[..., None], self.leftovers * revived[..., None], self.sums))
        self.seen_counts.zero_()
        self.seen_sums.zero_()

    def _see(self, k: int, left: Tensor, code: Tensor, kept: Tensor) -> None:
        """Adds what codebook k was given to the statistics of the step."""
        ones = kept.to(left.dtype)
        self.seen_counts[k].index_add_(0, code, ones)
        self.seen_sums[k].index_add_(0, code, left * ones[:, None])
        drawn = torch.randint(0, len(left), (len(self.leftovers[k]),), device=left.device)
        self.leftovers[k] = left[drawn]

    def _kept(self, B: int, T: int, device: torch.device) -> Tensor | None:
        """(B·T,) how many codes each frame keeps; None outside of training: all."""
        if not self.training:
            return None
        K = len(self.counts)
        some = torch.rand(B, device=device) < self.quantizer_dropout
        count = torch.where(some, torch.randint(1, K + 1, (B,), device=device), K)
        return count.repeat_interleave(T)

    @torch.no_grad()
    def _begin(self, left: Tensor) -> None:
        """Before the first step every table is some of the first latents, and of what those before it left over."""
        self._begun = True
        if bool(self.counts.any()):
            return  # loaded
        for k in range(len(self.counts)):
            drawn = torch.randint(0, len(left), (self.counts.shape[1],), device=left.device)
            spread = 0.01 * left.std() * torch.randn_like(left[drawn])
            self.sums[k] = left[drawn] + spread
            left = left - self.sums[k][_nearest(left, self.sums[k])]
        share = left.shape[0] / self.counts.shape[1]
        self.counts.fill_(share)
        self.sums.mul_(share)


def _nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """(N,) int64: the row of a (V, L) table that is nearest to each of (N, L) vectors."""
    return (table.square().sum(1) - 2 * vectors @ table.T).argmin(1)
