"""From an encoder's tokens to the Thinker's embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.model.inputs import row_length


class Projector(nn.Module):
    """LayerNorm, Linear, GELU, Linear.

    Args:
        in_size: width of a token as the encoder gives it.
        out_size: width of the Thinker.
    """

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_size)
        self.up = nn.Linear(in_size, out_size)
        self.act = nn.GELU()
        self.down = nn.Linear(out_size, out_size)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None = None) -> None:
        """Normal weights, no bias."""
        for layer in (self.up, self.down):
            layer.weight.normal_(0.0, std, generator=generator)
            layer.bias.zero_()
        self.norm.weight.fill_(1.0)
        self.norm.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_size) to (N, out_size)."""
        N = x.shape[0]
        x = F.pad(x, (0, 0, 0, row_length(N) - N))
        out: Tensor = self.down(self.act(self.up(self.norm(x))))
        return out[:N]
