"""The codec's decoder: causal blocks, then a spectrum of magnitudes and phases every hop, and its inverse.

The head is Vocos's (Siuzdak, arXiv:2306.00814). Spectrum f is of the samples whose last one is the last of hop f, as
the encoder heard them, so that the decoder is as causal as it: samples are complete once the spectra behind them
have come, `delay` samples later, and there is no end that has to be made up.

Legend: B rows, T frames of codes, F spectra, L latent_size, D hidden_size, N samples of a window.
"""

import torch
from torch import Tensor, nn

from muomni.config.codec import CodecConfig
from muomni.model.codec.layers import CausalConv, ConvBlock, History, init_layers, with_past

# ln of the largest magnitude of a frequency relative to a full wave's; e² is far beyond what a recording holds.
_LARGEST = 2.0
# Magnitudes begin at about what speech has.
_USUAL = -6.0


class SpectrumHead(nn.Module):
    """Frames to samples by an inverse Fourier transform of each, the overlapping windows added up."""

    shape: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.window, self.hop_length = config.window, config.hop_length
        self.linear = nn.Linear(config.hidden_size, config.window + 2)
        shape = torch.hann_window(config.window, dtype=torch.float64)
        # Analysis and synthesis windows together, four of which overlap, add up to 3/2.
        self.register_buffer("shape", shape * (config.window / 4 / 1.5), persistent=False)

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """(B, F, D) to (B, F·hop) samples, `delay` samples late: those before the first sample come first."""
        # Under autocast this stays exact: a phase of a few turns has no digits left in bf16.
        with torch.autocast(x.device.type, enabled=False):
            size, phase = self.linear(x).chunk(2, -1)
            spectra = torch.polar((size + _USUAL).clamp(max=_LARGEST).exp(), phase)
            pieces = torch.fft.irfft(spectra, self.window) * self.shape.to(phase.dtype)
        overlap = self.window // self.hop_length
        # Quarter q of a window is a part of the hop that ends q hops after the window's first one.
        pieces = with_past(self, pieces, overlap - 1, history)
        pieces = pieces.view(*pieces.shape[:2], overlap, self.hop_length)
        count = x.shape[1]
        hops = [pieces[:, overlap - 1 - q : overlap - 1 - q + count, q] for q in range(overlap)]
        return torch.stack(hops).sum(0).flatten(1)


class CodecDecoder(nn.Module):
    """T frames of L rounded numbers to samples."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        width, hidden, kernel = config.hidden_size, config.intermediate_size, config.kernel_size
        depth = config.frame_layers + config.num_hidden_layers
        self.spectra_per_frame = config.spectra_per_frame
        self.first = CausalConv(config.latent_size, width, 3)
        self.frame_blocks = nn.ModuleList(ConvBlock(width, hidden, kernel, depth) for _ in range(config.frame_layers))
        self.widen = nn.Linear(width, width * config.spectra_per_frame)
        self.blocks = nn.ModuleList(ConvBlock(width, hidden, kernel, depth) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = SpectrumHead(config)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """See `init_layers`."""
        init_layers(self, generator)

    def forward(self, values: Tensor, history: History | None = None) -> Tensor:
        """(B, T, L) to (B, T·frame_samples), `delay` samples late, see `SpectrumHead`."""
        x = self.first(values, history)
        for block in self.frame_blocks:
            x = block(x, history)
        B, T, D = x.shape
        x = self.widen(x).to(x.dtype).view(B, T * self.spectra_per_frame, D)
        for block in self.blocks:
            x = block(x, history)
        samples: Tensor = self.head(self.norm(x), history)
        return samples
