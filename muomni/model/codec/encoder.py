"""The codec's encoder: log-mel spectra of what was heard so far, causal blocks, fewer frames at each stride.

Legend: B rows, S samples, F spectra, M mel bins, T frames of codes, L latent_size.
"""

import torch
from torch import Tensor, nn

from muomni.config.codec import CodecConfig
from muomni.model.codec.layers import CausalConv, ConvBlock, History, init_layers, with_past
from muomni.ops.log_mel import mel_filters

# Below this power in a bin, −100 dB of a full wave, is silence. The logarithm is brought to about −1 to 1.
_FLOOR = 1e-7
_CENTRE, _SPREAD = -3.0, 4.0


class LogMel(nn.Module):
    """Spectra of the last `window` samples, one every `hop_length`; they keep the loudness."""

    shape: Tensor
    filters: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.window, self.hop_length = config.window, config.hop_length
        shape = torch.hann_window(self.window, dtype=torch.float64)
        filters = mel_filters(config.num_mel_bins, self.window, config.sample_rate)
        # Of the widest of filters, so that a full wave of any frequency has a power of about one.
        self.register_buffer("shape", shape, persistent=False)
        self.register_buffer("filters", (filters / filters.sum(1, keepdim=True).clamp(min=1e-9)).T, persistent=False)

    def forward(self, samples: Tensor, history: History | None = None) -> Tensor:
        """(B, S) to (B, S / hop, M); S is a multiple of the hop."""
        seen = with_past(self, samples[..., None], self.window - self.hop_length, history)[..., 0]
        # Under autocast spectra stay exact: their smallest values are a millionth of the largest.
        with torch.autocast(samples.device.type, enabled=False):
            shape, filters = self.shape.to(samples), self.filters.to(samples)
            spectra = torch.fft.rfft(seen.unfold(1, self.window, self.hop_length) * shape) * (4 / self.window)
            power = (spectra.real.square() + spectra.imag.square()) @ filters
            mel: Tensor = (power.clamp(min=_FLOOR).log10() - _CENTRE) / _SPREAD
        return mel


class CodecEncoder(nn.Module):
    """Samples to T frames of L numbers, before they become codes."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        width, kernel = config.encoder_size, config.kernel_size
        depth = config.encoder_layers * (len(config.strides) + 1)
        self.mel = LogMel(config)
        self.first = CausalConv(config.num_mel_bins, width, 3)
        stages: list[nn.Module] = []
        for stride in (*config.strides, 0):
            stages += [ConvBlock(width, 3 * width, kernel, depth) for _ in range(config.encoder_layers)]
            if stride:
                stages.append(CausalConv(width, width, 2 * stride, stride))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.last = nn.Linear(width, config.latent_size)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """See `init_layers`."""
        init_layers(self, generator)

    def forward(self, samples: Tensor, history: History | None = None) -> Tensor:
        """(B, S) to (B, T, L); S is T times `frame_samples`."""
        x = self.first(self.mel(samples, history), history)
        for stage in self.stages:
            x = stage(x, history)
        latents: Tensor = self.last(self.norm(x))
        return latents.to(samples.dtype)
