"""SigLIP's vision encoder (Zhai et al., arXiv:2303.15343) in the place of our own.

Its learnt table of positions was made for square pictures of one size; it is interpolated to the grid of each picture,
so that pictures keep their aspect and become as many tokens as they do with our own encoder.

Legend: N patches of all pictures, D hidden_size, G rows and columns of the table, m merge.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import SiglipConfig
from muomni.model.encoders.layers import PublishedBlock, init_published
from muomni.model.encoders.vision import Grid, PatchEmbedding, checked_patches, lay_out
from muomni.model.inputs import ImageBatch


class SiglipEncoder(nn.Module):
    """Pictures to tokens, as `VisionEncoder`. The table of positions stays float when the model is quantised."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = PatchEmbedding(3 * config.patch_size**2, width)
        self.positions = nn.Parameter(torch.empty(config.grid**2, width))
        self.layers = nn.ModuleList(PublishedBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights, for an encoder whose weights are not loaded."""
        init_published(self, self.config.initializer_range, generator)

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
        x: Tensor = self.patch_embed(F.pad(patches, (0, 0, 0, missing)).to(self.positions.dtype))
        x = (x + F.pad(self._places(images.grids), (0, 0, 0, missing)))[None]
        for block in self.layers:
            x = block(x, row.segments)
        hidden: Tensor = self.norm(x[0])
        return hidden.index_select(0, row.order).view(len(row.order) // m**2, -1)

    def _places(self, grids: tuple[Grid, ...]) -> Tensor:
        """(N, D) positions of all patches; a grid that comes several times is interpolated once."""
        G = self.config.grid
        table = self.positions.T.view(1, -1, G, G)
        made: dict[Grid, Tensor] = {}
        for grid in grids:
            if grid not in made:
                whole = grid == (G, G)
                resized = table if whole else F.interpolate(table, grid, mode="bicubic", align_corners=False)
                made[grid] = resized[0].flatten(1).T
        return torch.cat([made[grid] for grid in grids])


def siglip_name(name: str) -> str | None:
    """What a tensor of a Hugging Face folder is called here; None if the encoder has no use for it."""
    name = name.removeprefix("vision_model.")
    if name.startswith("post_layernorm."):
        return name.replace("post_layernorm.", "norm.")
    if name == "embeddings.position_embedding.weight":
        return "positions"
    if name.startswith("embeddings.patch_embedding."):
        return name.replace("embeddings.patch_embedding.", "patch_embed.")
    # See `PublishedAttention`: a bias of the keys changes nothing.
    if name.startswith("encoder.layers.") and not name.endswith(".k_proj.bias"):
        return name.removeprefix("encoder.").replace(".mlp.", ".")
    return None
