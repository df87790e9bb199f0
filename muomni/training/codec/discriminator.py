"""Tells recordings from what the codec gives back; only training has it.

Convolutions over spectra at several resolutions, each patch of one judged by itself (as in EnCodec,
arXiv:2210.13438, much smaller). Hinge losses: −1 and less is a codec's, 1 and more a recording's.

Legend: B rows, S samples, F frequencies, T spectra.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOWS = (1024, 512, 256)
_CHANNELS = 16
_SLOPE = 0.1


class _Scale(nn.Module):
    """One resolution."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        sizes = (2, _CHANNELS, 2 * _CHANNELS, 2 * _CHANNELS)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, (3, 5), stride=(1, 2), padding=(1, 2)) for a, b in pairwise(sizes))
        self.last = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, samples: Tensor) -> list[Tensor]:
        with torch.autocast(samples.device.type, enabled=False):
            shape = torch.hann_window(self.window, dtype=samples.dtype, device=samples.device)
            spectra = torch.fft.rfft(samples.unfold(1, self.window, self.window // 4) * shape) * (4 / self.window)
            size = (spectra.real.square() + spectra.imag.square() + 1e-8).sqrt()
            # Loudness is heard in ratios: the fourth root brings soft and loud nearer, phases stay.
            scaled = torch.stack((spectra.real, spectra.imag), 1) * size.pow(-0.75)[:, None]
        features = []
        x = scaled
        for conv in self.convs:
            x = F.leaky_relu(conv(x), _SLOPE)
            features.append(x)
        return [*features, self.last(x)]


class Discriminator(nn.Module):
    """All resolutions, beside each other."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(window) for window in WINDOWS)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)

    def forward(self, samples: Tensor) -> list[list[Tensor]]:
        """(B, S) to what each resolution sees layer by layer, its verdicts last."""
        return [scale(samples) for scale in self.scales]


def critic_loss(recorded: Sequence[Sequence[Tensor]], decoded: Sequence[Sequence[Tensor]]) -> Tensor:
    """What the discriminator learns by: a sum over clips, 2 where it knows nothing.

    Args:
        recorded: what `Discriminator` gives for the recordings.
        decoded: and for what the codec makes of them.
    """
    parts = [
        _per_clip(F.relu(1 - real[-1].float())) + _per_clip(F.relu(1 + made[-1].float()))
        for real, made in zip(recorded, decoded, strict=True)
    ]
    return torch.stack(parts).mean(0).sum()


def codec_losses(recorded: Sequence[Sequence[Tensor]], decoded: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """What the codec learns by from the discriminator; sums over clips.

    Returns:
        `adversarial`: −verdict; `feature_matching`: |difference| of the layers relative to the recording's.
    """
    verdicts = [_per_clip(-made[-1].float()) for made in decoded]
    differences = [
        _per_clip((x.detach() - y).float().abs()) / _per_clip(x.detach().float().abs()).clamp(min=1e-4)
        for real, made in zip(recorded, decoded, strict=True)
        for x, y in zip(real[:-1], made[:-1], strict=True)
    ]
    return {
        "adversarial": torch.stack(verdicts).mean(0).sum(),
        "feature_matching": torch.stack(differences).mean(0).sum(),
    }


def _per_clip(values: Tensor) -> Tensor:
    """(B,) the mean of each row."""
    return values.flatten(1).mean(1)
