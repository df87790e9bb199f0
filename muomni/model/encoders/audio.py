"""The audio encoder: log-mel frames at 100 Hz, three convolutions of stride 2, transformer blocks at 12.5 Hz.

A clip is cut into chunks of `chunk_tokens` (8 s) that do not see each other, so that time and memory grow with the
length of a clip and there is no longest one. All chunks of all clips stand in one row, none is padded to the longest.

Legend: F frames, M mel bins, L frames of the row, N tokens, D hidden_size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import AudioConfig
from muomni.model.inputs import AudioBatch, filled, moved, row_length
from muomni.model.layers import Block, RMSNorm
from muomni.ops.attention import Segments
from muomni.ops.audio_frames import FRAMES_PER_TOKEN, num_tokens
from muomni.ops.rope import rope_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray


class AudioEncoder(nn.Module):
    """Clips to tokens: clip behind clip, `num_tokens` of each.

    A clip's tokens do not depend on the clips around it. Convolutions stay float when the model is quantised: they
    hold a few percent of the weights, and a first layer's rounding would be in everything that follows.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, width, kernel_size=3, stride=2, padding=1)
            for channels in (config.num_mel_bins, width, width)
        )
        self.layers = nn.ModuleList(Block(config, layer, causal=False) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As the Thinker's; convolutions keep the size of what comes in (He et al., arXiv:1502.01852)."""
        std = self.config.initializer_range
        branch = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 3:
                parameter.normal_(0.0, math.sqrt(2 / parameter[0].numel()), generator=generator)
            elif parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, branch if ends_branch else std, generator=generator)

    def counts(self, clips: AudioBatch) -> list[int]:
        """How many tokens each clip becomes."""
        return [num_tokens(frames) for frames in clips.frames]

    def forward(self, clips: AudioBatch) -> Tensor:
        """Runs the encoder.

        Args:
            clips: at least one, on the encoder's device.

        Returns:
            (N, D) hidden states after the last norm.

        Raises:
            ValueError: the frames are not of `num_mel_bins`, or not as many as the clips have.
        """
        mel = checked_mel(clips, self.config.num_mel_bins)
        row = lay_out(clips.frames, self.config.chunk_tokens).to(mel.device)
        x = self._convolved(mel, row)[None]
        rotation = rope_tables(row.positions[None], self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.layers:
            x = block(x, rotation, row.segments, None)
        hidden: Tensor = self.norm(x[0, : sum(self.counts(clips))])
        return hidden

    def _convolved(self, mel: Tensor, row: "PackedClips") -> Tensor:
        """(tokens of the row, D) as the blocks take them."""
        nothing = mel.new_zeros(1, mel.shape[1])
        x = torch.cat((mel, nothing))[row.frames].to(self.norm.weight.dtype)
        outside = row.frames == mel.shape[0]
        x = x.T[None]
        for conv in self.convs:
            outside = outside[::2]
            # A convolution puts its bias, and what is left of a chunk's end, where there is no sound.
            x = F.gelu(conv(x)).masked_fill(outside, 0)
        # Under autocast convolutions are in low precision; the residual stream is not, as in the Thinker.
        return x[0].T[row.tokens].to(self.norm.weight.dtype)


def checked_mel(clips: AudioBatch, bins: int) -> Tensor:
    """The frames of all clips.

    Raises:
        ValueError: they are not of `bins`, or not as many as the clips have.
    """
    wanted = (sum(clips.frames), bins)
    if clips.mel.shape != wanted or not clips.frames or 0 in clips.frames:
        raise ValueError(
            f"clips of {clips.frames} frames need {wanted} mel values, each clip at least one frame, "
            f"and there are {tuple(clips.mel.shape)}"
        )
    return clips.mel


@dataclass(frozen=True)
class PackedClips:
    """How the chunks of some clips stand in one row.

    A chunk takes a multiple of 8 frames, and 8 frames of zeros stand behind it: what a convolution sees beyond the
    end of a chunk is then zero on each of the three levels, as if the chunk were alone.

    Attributes:
        frames: (L,) int64, which frame stands there; the number of all frames where none does.
        tokens: (M,) int64, which of the L / 8 places at the end of the convolutions are tokens: N of them, and behind
            them, up to a length of few, some place that nobody reads; see `row_length`.
        positions: (M,) int64, of a token inside its chunk.
        segments: the chunks, as documents, and behind them what fills the row.
    """

    frames: Tensor
    tokens: Tensor
    positions: Tensor
    segments: Segments

    def to(self, device: torch.device) -> "PackedClips":
        """The same on a device."""
        bounds = Segments(moved(self.segments.cu_seqlens, device), self.segments.max_seqlen)
        return PackedClips(
            moved(self.frames, device), moved(self.tokens, device), moved(self.positions, device), bounds
        )


def lay_out(frames: Sequence[int], chunk_tokens: int) -> PackedClips:
    """The row of clips of so many frames, on the host.

    Args:
        frames: of each clip, at least 1.
        chunk_tokens: of the longest chunk.
    """
    clips = np.asarray(frames, dtype=np.int64)
    longest = chunk_tokens * FRAMES_PER_TOKEN
    chunks = -(-clips // longest)
    clip, chunk = _counted(chunks)
    lengths = np.minimum(clips[clip] - chunk * longest, longest)
    starts = (np.cumsum(clips) - clips)[clip] + chunk * longest
    tokens = -(-lengths // FRAMES_PER_TOKEN)

    owner, inside = _counted((tokens + 1) * FRAMES_PER_TOKEN)
    heard = inside < lengths[owner]
    where = np.where(heard, starts[owner] + inside, clips.sum())
    _, positions = _counted(tokens)
    ends = filled([0, *np.cumsum(tokens).tolist()])
    places = np.flatnonzero(heard[::FRAMES_PER_TOKEN])
    missing = ends[-1] - len(positions)
    segments = Segments(torch.tensor(ends, dtype=torch.int32), max(64, int(tokens.max()))).rounded(ends[-1])
    return PackedClips(
        torch.from_numpy(np.pad(where, (0, row_length(len(where)) - len(where)), constant_values=clips.sum())),
        torch.from_numpy(np.pad(places, (0, missing))),
        torch.from_numpy(np.pad(positions, (0, missing))),
        segments,
    )


def _counted(counts: "NDArray[np.int64]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Of things in groups of `counts`: the group of each, and its number in the group."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
