"""Whisper's encoder (Radford et al., arXiv:2212.04356) in the place of our audio encoder.

It hears windows of 30 s, always whole: the end of a clip is padded with silence. Of what it gives, 50 states a second,
the padding's are dropped and four of the rest stand beside each other in one token: 12.5 tokens a second, as from our
own encoder, and any length.

Legend: F frames, M mel bins, W windows, N tokens, D hidden_size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import WhisperConfig
from muomni.model.encoders.audio import checked_mel
from muomni.model.encoders.layers import PublishedBlock, init_published
from muomni.model.inputs import AudioBatch, moved
from muomni.ops.audio_frames import num_tokens

FRAMES = 3000
_STATES = FRAMES // 2
# States beside each other in one token.
_STACK = 4


class WhisperEncoder(nn.Module):
    """Clips to tokens, as `AudioEncoder`; the frames are those of `ops.log_mel.whisper_log_mel`.

    Convolutions and positions stay float when the model is quantised, as in `AudioEncoder`.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(_STATES, width))
        self.layers = nn.ModuleList(PublishedBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights, for an encoder whose weights are not loaded."""
        init_published(self, self.config.initializer_range, generator)

    def counts(self, clips: AudioBatch) -> list[int]:
        """How many tokens each clip becomes."""
        return [num_tokens(frames) for frames in clips.frames]

    def forward(self, clips: AudioBatch) -> Tensor:
        """Runs the encoder.

        Args:
            clips: at least one, on the encoder's device.

        Returns:
            (N, 4·D), `num_tokens` of each clip.

        Raises:
            ValueError: the frames are not of `num_mel_bins`, or not as many as the clips have.
        """
        mel = checked_mel(clips, self.config.num_mel_bins)
        lengths = [min(FRAMES, count - start) for count in clips.frames for start in range(0, count, FRAMES)]
        x = _windows(mel, lengths).to(self.positions.dtype).transpose(1, 2)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        x = x + self.positions
        for block in self.layers:
            x = block(x, None)
        stacked: Tensor = self.norm(x).reshape(-1, _STACK * x.shape[2])
        return stacked[moved(_places(lengths), mel.device)]


def _windows(mel: Tensor, lengths: Sequence[int]) -> Tensor:
    """(W, 3000, M): each window's frames, then silence, which Whisper's frames put 8 decades below the loudest."""
    total = torch.tensor(lengths)
    inside = torch.arange(FRAMES)
    heard = moved(inside < total[:, None], mel.device)
    places = moved(((total.cumsum(0) - total)[:, None] + inside).clamp(max=mel.shape[0] - 1), mel.device)
    frames = mel[places]
    # A quarter of a decade's logarithm plus 1; nothing is below 1e-10, which is silence in a clip of silence.
    loudest = frames.masked_fill(~heard[..., None], float("-inf")).amax((1, 2), keepdim=True)
    silence = (loudest - 2).clamp(min=-1.5)
    return torch.where(heard[..., None], frames, silence)


def _places(lengths: Sequence[int]) -> Tensor:
    """(N,) where the tokens that are not padding stand among the 375 of each window."""
    per_window = _STATES // _STACK
    parts = [torch.arange(num_tokens(length)) + per_window * window for window, length in enumerate(lengths)]
    return torch.cat(parts)


def whisper_name(name: str) -> str | None:
    """What a tensor of a Hugging Face folder is called here; None if the encoder has no use for it."""
    name = name.removeprefix("model.")
    if not name.startswith("encoder."):
        return None
    name = name.removeprefix("encoder.")
    if name == "embed_positions.weight":
        return "positions"
    if name.startswith("layer_norm."):
        return name.replace("layer_norm.", "norm.")
    return name.replace(".self_attn_layer_norm.", ".layer_norm1.").replace(".final_layer_norm.", ".layer_norm2.")
