"""Log-mel spectrograms of mono sound at 16 kHz: 100 frames a second, each of a window of 25 ms.

`log_mel` is what our own encoder hears. `whisper_log_mel` is Whisper's (Radford et al., arXiv:2212.04356): the same
window, hop and filters, but it keeps the loudness and works in pieces of 30 s.

Legend: S samples, F frames, M mel bins.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.ops.audio_frames import FRAMES_PER_TOKEN, HOP, SAMPLE_RATE, num_frames

WINDOW = 400
WHISPER_SECONDS = 30

# Powers of ten between the loudest bin of a clip and what counts as silence.
_DECADES = 8.0
# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, then 27 steps to a factor of 6.4.
_LINEAR_STEP, _BREAK_HZ, _LOG_STEP = 200.0 / 3, 1000.0, math.log(6.4) / 27


def log_mel(samples: Tensor, bins: int = 80) -> Tensor:
    """Logarithms of power relative to the clip's loudest bin: −1 for 80 dB below it and less, 1 for itself.

    Frame t is about the samples around 160·t; zeros stand before the first sample and behind the last. How loud the
    clip is does not matter: half the amplitude gives the same frames. Silence is −1 throughout.

    Args:
        samples: (S,) float32 or float64, mono, 16 kHz, finite, S ≥ 1.
        bins: M.

    Returns:
        (F, M) in the dtype and on the device of `samples`; F = `num_frames(S)`.

    Raises:
        ValueError: another shape or dtype, or no samples.
    """
    _check(samples)
    frames = num_frames(samples.shape[0])
    behind = (frames - 1) * HOP + WINDOW // 2 - samples.shape[0]
    power = _mel_power(F.pad(samples, (WINDOW // 2, behind)), bins)
    # Divided by the loudest first: the floor is then a number, and no silence is the logarithm of zero.
    loudest = power.max().clamp(min=torch.finfo(power.dtype).tiny)
    relative = (power / loudest).clamp(min=10**-_DECADES)
    return relative.log10() * (2 / _DECADES) + 1


def whisper_log_mel(samples: Tensor, bins: int = 80) -> Tensor:
    """What `WhisperFeatureExtractor` gives, cut to the frames that sound was heard in.

    Every 30 s are a piece of their own, as they are to Whisper: mirrored at their ends, with a floor of 8 decades
    below their own maximum.

    Args:
        samples: (S,) float32 or float64, mono, 16 kHz, −1 to 1, S ≥ 1.
        bins: M, 80 or 128 in the published models.

    Returns:
        (F, M) in the dtype and on the device of `samples`; F = `num_frames(S)`.

    Raises:
        ValueError: another shape or dtype, or no samples.
    """
    _check(samples)
    frames = num_frames(samples.shape[0])
    pieces = torch.split(samples, WHISPER_SECONDS * SAMPLE_RATE)
    return torch.cat([_whisper_piece(piece, bins) for piece in pieces])[:frames]


def mel_filters(bins: int, window: int = WINDOW, rate: int = SAMPLE_RATE) -> Tensor:
    """Triangular filters of equal area, evenly spaced on Slaney's mel scale from 0 to half the sample rate.

    Args:
        bins: M.
        window: samples of a window, N.
        rate: samples a second.

    Returns:
        (M, N/2 + 1) float64: the weights of the frequencies of a window in each bin.
    """
    hertz = torch.arange(window // 2 + 1, dtype=torch.float64) * (rate / window)
    top = _BREAK_HZ / _LINEAR_STEP + math.log(rate / 2 / _BREAK_HZ) / _LOG_STEP
    mels = torch.linspace(0, top, bins + 2, dtype=torch.float64)
    behind_break = _BREAK_HZ * ((mels - _BREAK_HZ / _LINEAR_STEP) * _LOG_STEP).exp()
    corners = torch.where(mels * _LINEAR_STEP < _BREAK_HZ, mels * _LINEAR_STEP, behind_break)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)).clamp(min=0)
    return triangles * (2 / (high - low))


def _whisper_piece(samples: Tensor, bins: int) -> Tensor:
    count = samples.shape[0]
    full = WHISPER_SECONDS * SAMPLE_RATE
    # Whisper pads with zeros to 30 s. Two windows of zeros give all frames that are not silent.
    samples = F.pad(samples, (0, min(2 * WINDOW + FRAMES_PER_TOKEN * HOP, full - count)))
    mirrored = F.pad(samples[None], (WINDOW // 2, WINDOW // 2), mode="reflect")[0]
    decades = _mel_power(mirrored, bins)[: samples.shape[0] // HOP].clamp(min=1e-10).log10()
    floored = torch.maximum(decades, decades.max() - _DECADES)
    return floored[: num_frames(count)] / 4 + 1


def _mel_power(padded: Tensor, bins: int) -> Tensor:
    """(F, M) power in each bin of the windows that begin every 160 samples."""
    window = torch.hann_window(WINDOW, dtype=padded.dtype, device=padded.device)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return (_filters(bins).to(power) @ power).T.contiguous()


@cache
def _filters(bins: int) -> Tensor:
    return mel_filters(bins)


def _check(samples: Tensor) -> None:
    if samples.ndim != 1 or samples.shape[0] == 0 or samples.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"a clip is (S,) float32 or float64 samples, S at least 1, "
            f"and this is {tuple(samples.shape)} {str(samples.dtype).removeprefix('torch.')}"
        )
