"""What a decoded clip should share with the recording: its spectra at several resolutions, and their mel bands.

Multi-resolution STFT loss (Yamamoto et al., arXiv:1910.11480): ‖|X| − |Y|‖ / ‖|Y|‖ of each clip, plus the mean of
|ln|X| − ln|Y||. Log-mel loss: the mean of |ln m(X) − ln m(Y)| over mel bands.

Legend: B rows, S samples.
"""

from functools import cache

import torch
from torch import Tensor

from muomni.ops.log_mel import mel_filters

# Window and mel bins of each resolution; the hop is a quarter of the window.
RESOLUTIONS = ((2048, 96), (1024, 64), (512, 40), (256, 24))
# Below 70 dB under a full wave differences do not count: that is noise, and its phase is free.
_FLOOR = 3e-4


def spectral_losses(decoded: Tensor, recorded: Tensor, rate: int) -> dict[str, Tensor]:
    """Both losses, each the sum over clips of a mean over resolutions.

    Args:
        decoded: (B, S), S at least 2,048; fp32 or fp64.
        recorded: likewise.
        rate: samples a second.

    Returns:
        `stft` and `mel`, scalars.
    """
    total = {"stft": decoded.new_zeros(()), "mel": decoded.new_zeros(())}
    for window, bins in RESOLUTIONS:
        x, y = (_magnitudes(samples, window) for samples in (decoded, recorded))
        distance = (x - y).square().sum((1, 2)).add(1e-12).sqrt()
        # Of a silent clip the ratio means nothing: it is held to that of the floor.
        relative = distance / y.square().sum((1, 2)).add(y[0].numel() * _FLOOR**2).sqrt()
        logs = ((x + _FLOOR).log() - (y + _FLOOR).log()).abs().mean((1, 2))
        total["stft"] = total["stft"] + (relative + logs).sum() / len(RESOLUTIONS)
        filters = _filters(bins, window, rate).to(x)
        mel = ((x @ filters + _FLOOR).log() - (y @ filters + _FLOOR).log()).abs().mean((1, 2))
        total["mel"] = total["mel"] + mel.sum() / len(RESOLUTIONS)
    return total


def _magnitudes(samples: Tensor, window: int) -> Tensor:
    """(B, frames, window/2 + 1), 1 for a full wave."""
    shape = torch.hann_window(window, dtype=samples.dtype, device=samples.device)
    spectra = torch.fft.rfft(samples.unfold(1, window, window // 4) * shape) * (4 / window)
    # The root has no slope at zero.
    magnitudes: Tensor = (spectra.real.square() + spectra.imag.square() + 1e-12).sqrt()
    return magnitudes


@cache
def _filters(bins: int, window: int, rate: int) -> Tensor:
    """(window/2 + 1, bins), each the weights of a mean."""
    filters = mel_filters(bins, window, rate)
    return (filters / filters.sum(1, keepdim=True).clamp(min=1e-9)).T.contiguous()
