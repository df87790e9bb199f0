"""Log-mel spectrograms against a slow transform by its definition, and against Whisper's own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.ops.audio_frames import SAMPLE_RATE, num_frames
from muomni.ops.log_mel import log_mel, mel_filters, whisper_log_mel


def sound(samples: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A gliding tone in noise."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(samples, dtype=dtype) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * math.pi * (300 + 900 * time) * time)
    return tone + 0.01 * torch.randn(samples, generator=draw, dtype=dtype)


def slow_log_mel(samples: torch.Tensor, bins: int) -> torch.Tensor:
    """Window by window, frequency by frequency; filters from corners in hertz."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(8, 6.4)
    corners = [hertz(top * i / (bins + 1)) for i in range(bins + 2)]
    count = max(8, math.ceil(samples.shape[0] / 160))
    n = torch.arange(400, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 400)
    waves = torch.polar(
        torch.ones(201, 400, dtype=torch.float64), -2 * math.pi * torch.outer(torch.arange(201), n) / 400
    )
    power = torch.zeros(count, bins, dtype=torch.float64)
    for t in range(count):
        piece = torch.zeros(400, dtype=torch.float64)
        for i in range(400):
            at = 160 * t - 200 + i
            if 0 <= at < samples.shape[0]:
                piece[i] = samples[at]
        energy = (waves @ (piece * window).to(waves.dtype)).abs() ** 2
        for m in range(bins):
            low, middle, high = corners[m : m + 3]
            for k in range(201):
                weight = min((k * 40 - low) / (middle - low), (high - k * 40) / (high - middle))
                power[t, m] += max(0.0, weight) * 2 / (high - low) * energy[k]
    decades = (power / power.max()).clamp(min=1e-8).log10()
    return decades / 4 + 1


@pytest.mark.parametrize(("samples", "bins"), [(1, 80), (159, 4), (1600, 7), (2001, 3)])
def test_frames_are_those_of_the_definition(samples, bins):
    clip = sound(samples)
    torch.testing.assert_close(log_mel(clip, bins), slow_log_mel(clip, bins), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_mel(clip.float(), bins), slow_log_mel(clip, bins).float(), rtol=0, atol=2e-4)


@given(samples=st.integers(1, 4000), bins=st.sampled_from([80, 128]))
@settings(max_examples=30, deadline=None)
def test_shape_and_range(samples, bins):
    mel = log_mel(sound(samples, dtype=torch.float32), bins)
    assert mel.shape == (max(8, -(-samples // 160)), bins)
    assert num_frames(samples) == mel.shape[0]
    assert mel.dtype == torch.float32
    assert float(mel.max()) == 1.0
    assert float(mel.min()) >= -1.0


@given(samples=st.integers(200, 4000), loudness=st.floats(1e-3, 10))
@settings(max_examples=30, deadline=None)
def test_loudness_does_not_matter(samples, loudness):
    clip = sound(samples, dtype=torch.float32)
    torch.testing.assert_close(log_mel(clip * loudness), log_mel(clip), rtol=0, atol=1e-4)


def test_silence_is_the_floor():
    assert bool((log_mel(torch.zeros(1000)) == -1).all())


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_are_whispers(bins):
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(201, bins, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(bins).numpy(), theirs.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [100, 16_000, 480_000 - 37, 480_000, 480_000 + 8000])
def test_whispers_features(bins, samples):
    transformers = pytest.importorskip("transformers")
    extract = transformers.WhisperFeatureExtractor(feature_size=bins)
    clip = 0.1 * sound(samples, dtype=torch.float32)
    ours = whisper_log_mel(clip, bins)
    assert ours.shape == (num_frames(samples), bins)
    pieces = torch.split(clip, 480_000)
    theirs = [
        extract(piece.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0] for piece in pieces
    ]
    expected = torch.cat([piece.T for piece in theirs])[: ours.shape[0]]
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16)])
def test_what_is_no_clip_is_refused(bad):
    for function in (log_mel, whisper_log_mel):
        with pytest.raises(ValueError, match="a clip is"):
            function(bad)
