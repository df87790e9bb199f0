"""The vision encoder: a transformer over the patches of pictures of any shape (Dosovitskiy et al., arXiv:2010.11929).

Its blocks are the Thinker's without causality, so that every optimization of blocks serves both. All patches of all
pictures stand in one row, none is padded, and a patch sees its own picture only. Where a patch is, rotary positions of
row and column say (as in Qwen2-VL, arXiv:2409.12191), so there is no table of positions that would fix the size.
At the end m × m patches become one token (pixel shuffle): m² times fewer tokens for the Thinker.

Legend: N patches of all pictures, P patch size, D hidden_size, m merge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import VisionConfig
from muomni.model.inputs import ImageBatch, filled, moved
from muomni.model.layers import Block, RMSNorm
from muomni.ops.attention import Segments
from muomni.ops.rope import rope_tables

Grid = tuple[int, int]


class PatchEmbedding(nn.Linear):
    """Pixels of a patch to its first hidden state.

    A class of its own so that quantising leaves it in float: it holds a few percent of the weights, and a first
    layer's rounding would be in everything that follows.
    """


class VisionEncoder(nn.Module):
    """Pictures to tokens: picture behind picture, row by row. A picture's tokens do not depend on its neighbours."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = PatchEmbedding(3 * config.patch_size**2, width)
        self.layers = nn.ModuleList(Block(config, layer, causal=False) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As the Thinker's; the patch embedding keeps the size of what comes in."""
        std = self.config.initializer_range
        branch = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name == "patch_embed.weight":
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, branch if ends_branch else std, generator=generator)

    def counts(self, images: ImageBatch) -> list[int]:
        """How many tokens each picture becomes."""
        return [rows * columns // self.config.pixel_shuffle_factor**2 for rows, columns in images.grids]

    def forward(self, images: ImageBatch) -> Tensor:
        """Runs the encoder.

        Args:
            images: at least one, on the encoder's device.

        Returns:
            (N / m², m² · D) hidden states after the last norm, those of m × m patches beside each other.

        Raises:
            ValueError: the patches are not as many or not as large as the grids say, or a grid is not a multiple of m.
        """
        m = self.config.pixel_shuffle_factor
        patches = checked_patches(images, self.config.patch_size, m)
        row = lay_out(images.grids, m).to(patches.device)
        missing = row.positions.shape[1] - patches.shape[0]
        x: Tensor = self.patch_embed(F.pad(patches, (0, 0, 0, missing)).to(self.patch_embed.weight.dtype))
        # Under autocast the product is in low precision; the residual stream is not, as in the Thinker.
        x = x.to(self.norm.weight.dtype)[None]
        rotation = rope_tables(row.positions[:, None], self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.layers:
            x = block(x, rotation, row.segments, None)
        hidden: Tensor = self.norm(x[0])
        return hidden.index_select(0, row.order).view(len(row.order) // m**2, -1)


def checked_patches(images: ImageBatch, patch_size: int, merge: int) -> Tensor:
    """The patches of all pictures.

    Raises:
        ValueError: they are not as many or not as large as the grids say, or a grid is not a multiple of
        `pixel_shuffle_factor`.
    """
    wanted = (sum(rows * columns for rows, columns in images.grids), 3 * patch_size**2)
    if images.patches.shape != wanted or not wanted[0]:
        raise ValueError(f"grids {images.grids} need {wanted} patches, not {tuple(images.patches.shape)}")
    if any(rows % merge or columns % merge for rows, columns in images.grids):
        raise ValueError(
            f"grids {images.grids} in patches must be multiples of {merge}, as {merge} × {merge} become one token"
        )
    return images.patches


@dataclass(frozen=True)
class PackedImages:
    """How the patches of some pictures stand in one row.

    Attributes:
        positions: (2, L) int64, row and column of a patch in its picture; L is N or somewhat more, see `row_length`.
        order: (N,) int64, the patches by token: those of one token beside each other, row by row.
        segments: the pictures, as documents, and behind them what fills the row.
    """

    positions: Tensor
    order: Tensor
    segments: Segments

    def to(self, device: torch.device) -> "PackedImages":
        """The same on a device."""
        bounds = Segments(moved(self.segments.cu_seqlens, device), self.segments.max_seqlen)
        return PackedImages(moved(self.positions, device), moved(self.order, device), bounds)


def lay_out(grids: Sequence[Grid], merge: int) -> PackedImages:
    """The row of pictures of these grids in patches, multiples of `pixel_shuffle_factor`; made on the host."""
    positions, order, bounds = [], [], [0]
    for rows, columns in grids:
        positions.append(np.indices((rows, columns)).reshape(2, -1))
        numbers = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
        order.append(numbers.swapaxes(1, 2).ravel() + bounds[-1])
        bounds.append(bounds[-1] + rows * columns)
    longest = max(rows * columns for rows, columns in grids)
    ends = filled(bounds)
    positions.append(np.zeros((2, ends[-1] - bounds[-1]), dtype=np.int64))
    segments = Segments(torch.tensor(ends, dtype=torch.int32), max(longest, 64)).rounded(ends[-1])
    return PackedImages(
        torch.from_numpy(np.concatenate(positions, 1)), torch.from_numpy(np.concatenate(order)), segments
    )
