"""Causal layers of the codec. Legend: B rows, T frames, C channels.

Whole clips and streams run through the same code: what a layer sees before the first frame is zeros, or what a
`History` remembers of the frames before.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to this many frames count as a short piece: a stream's.
_FEW = 16


class History:
    """What causal layers have seen last, for rows that come piece by piece; empty at the beginning of all rows.

    A layer is its own key. Every piece has to go through all layers once.
    """

    def __init__(self) -> None:
        self._tails: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Tensor, context: int) -> Tensor:
        """(B, context + T, C): x with the `context` frames before it, zeros before the first."""
        before = self._tails.get(layer)
        joined = F.pad(x, (0, 0, context, 0)) if before is None else torch.cat((before, x), dim=1)
        tail = joined[:, joined.shape[1] - context :]
        # Behind a long piece a copy: a view would keep all of it in memory.
        self._tails[layer] = tail.clone() if x.shape[1] > context else tail
        return joined

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only.

        Args:
            rows: (b,) int64, numbers of rows.
        """
        self._tails = {layer: tail[rows] for layer, tail in self._tails.items()}


def with_past(layer: nn.Module, x: Tensor, context: int, history: History | None) -> Tensor:
    """(B, context + T, C): what a causal layer looks at; without a history x begins its rows."""
    if history is None:
        return F.pad(x, (0, 0, context, 0))
    return history.extend(layer, x, context)


class CausalConv(nn.Module):
    """A convolution over `kernel` frames, the newest at its end; one output for every `stride` frames.

    A matrix product over frames laid side by side, which a CPU does in low precision where it has that.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.linear = nn.Linear(inputs * kernel, outputs)

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """(B, T, inputs) to (B, T / stride, outputs); T is a multiple of the stride."""
        seen = with_past(self, x, self.kernel - self.stride, history)
        out: Tensor = self.linear(seen.unfold(1, self.kernel, self.stride).flatten(2))
        # Under autocast products are in low precision; what blocks add to is not, as in the Thinker.
        return out.to(x.dtype)


class Depthwise(nn.Module):
    """Each channel's own causal convolution over `kernel` frames.

    A sum of shifted products: on a CPU, forward and backward take half the time of torch's grouped convolution. The
    short pieces of a stream, where starting an operation is what costs, take one product of all windows.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        T = x.shape[1]
        kernel = self.weight.shape[0]
        seen = with_past(self, x, kernel - 1, history)
        if T <= _FEW:
            windows = seen.unfold(1, kernel, 1).transpose(2, 3)
            return (windows * self.weight).sum(2) + self.bias
        out = self.bias.expand_as(x)
        for n in range(kernel):
            out = torch.addcmul(out, seen[:, n : n + T], self.weight[n])
        return out


class ConvBlock(nn.Module):
    """x + scale · mlp(norm(depthwise(x))) (ConvNeXt, arXiv:2201.03545), causal."""

    def __init__(self, channels: int, hidden: int, kernel: int, depth: int) -> None:
        super().__init__()
        self.depthwise = Depthwise(channels, kernel)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up = nn.Linear(channels, hidden)
        self.down = nn.Linear(hidden, channels)
        # Of `depth` branches that add up, each begins small.
        self.scale = nn.Parameter(torch.full((channels,), 1.0 / depth))

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        branch: Tensor = self.down(F.gelu(self.up(self.norm(self.depthwise(x, history)))))
        return x + self.scale * branch


@torch.no_grad()
def init_layers(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Weights that keep the size of what comes in; no biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.normal_(0.0, 1 / math.sqrt(part.in_features), generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, Depthwise):
            part.weight.normal_(0.0, 1 / math.sqrt(part.weight.shape[0]), generator=generator)
