"""The text as the Talker reads it: bytes and the Thinker's states, mixed over a few units before and behind.

It sees `TalkerConfig.lookahead` units ahead and no more, so that speech can begin before the text is complete.

Legend: B rows, U units, C text_size, D hidden_size.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config.talker import TalkerConfig
from muomni.model.codec.layers import Depthwise
from muomni.model.layers import RMSNorm
from muomni.model.talker.batch import UNITS

if TYPE_CHECKING:
    from muomni.model.int8_layers import Int8Embedding


class TextBlock(nn.Module):
    """x + scale · mlp(norm(depthwise(x))) (ConvNeXt, arXiv:2201.03545), as far ahead as back."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        width = config.text_size
        self.ahead = (config.text_kernel - 1) // 2
        self.depthwise = Depthwise(width, config.text_kernel)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        # Of the branches that add up, each begins small.
        self.scale = nn.Parameter(torch.full((width,), 1 / config.text_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, C) to (B, U, C)."""
        # The convolution looks back only; what comes out is taken from further behind.
        seen = self.depthwise(F.pad(x, (0, 0, 0, self.ahead)))[:, self.ahead :]
        branch: Tensor = self.down(F.gelu(self.up(self.norm(seen))))
        return x + self.scale * branch


class TextEncoder(nn.Module):
    """Units and states to what the Talker adds to its input.

    Args:
        config: sizes.
        thinker_size: width of the Thinker's states.
    """

    def __init__(self, config: TalkerConfig, thinker_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.text_size
        table = torch.empty(UNITS, width)
        self.embed_units: nn.Embedding | Int8Embedding = nn.Embedding(UNITS, width, _weight=table)
        self.state_norm = RMSNorm(thinker_size, config.rms_norm_eps)
        # Without a bias: states of zeros add nothing, which is what `conditioning_dropout` makes of a sentence.
        self.state_proj = nn.Linear(thinker_size, width, bias=False)
        self.layers = nn.ModuleList(TextBlock(config) for _ in range(config.text_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.out = nn.Linear(width, config.hidden_size, bias=False)

    def project(self, states: Tensor) -> Tensor:
        """(…, C) of (…, Dt) states of the Thinker; a token's does not depend on the others."""
        projected: Tensor = self.state_proj(self.state_norm(states))
        return projected

    def forward(self, units: Tensor, projected: Tensor, inside: Tensor | None = None) -> Tensor:
        """Runs the encoder.

        Args:
            units: (B, U) int64.
            projected: (B, U, C) as `project` gives it.
            inside: (B, U) bool, where there are units; elsewhere every layer sees zeros, as beyond a row's ends. None
                where there are units everywhere.

        Returns:
            (B, U, D); zeros where there are no units.
        """
        keep = None if inside is None else ~inside[..., None]
        # The residual stream is not in low precision under autocast, as in the Thinker.
        x = _masked(self.embed_units(units) + projected, keep)
        for block in self.layers:
            x = _masked(block(x), keep)
        out: Tensor = self.out(self.norm(x))
        return out


def _masked(x: Tensor, outside: Tensor | None) -> Tensor:
    return x if outside is None else x.masked_fill(outside, 0)
