"""The audio encoder against its definition, clip by clip and chunk by chunk."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.config import AudioConfig
from muomni.model.encoders.audio import AudioEncoder
from muomni.model.inputs import AudioBatch
from muomni.ops.audio_frames import SAMPLE_RATE, num_tokens
from muomni.ops.log_mel import log_mel
from muomni.ops.rope import rope_tables

CONFIG = AudioConfig(
    num_mel_bins=5,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    chunk_tokens=12,
    initializer_range=0.5,
)


def make_encoder(config: AudioConfig = CONFIG, dtype: torch.dtype = torch.float64) -> AudioEncoder:
    encoder = AudioEncoder(config)
    encoder.init_weights(torch.Generator().manual_seed(0))
    for conv in encoder.convs:
        torch.nn.init.constant_(conv.get_parameter("bias"), 0.3)
    return encoder.to(dtype)


def make_clips(frames: Sequence[int], seed: int = 0, bins: int = 5) -> AudioBatch:
    draw = torch.Generator().manual_seed(seed)
    return AudioBatch(torch.randn(sum(frames), bins, generator=draw, dtype=torch.float64), tuple(frames))


def by_definition(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    """One clip: every chunk through plain convolutions and attention without segments."""
    config = encoder.config
    tokens = []
    for chunk in torch.split(mel, 8 * config.chunk_tokens):
        x = chunk.T
        for conv in encoder.convs:
            weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
            x = F.gelu(F.conv1d(x, weight, bias, stride=2, padding=1))
        x = x.T[None]
        rotation = rope_tables(torch.arange(x.shape[1])[None], config.head_dim, config.rope_theta, x.dtype)
        for block in encoder.layers:
            x = block(x, rotation, None, None)
        tokens.append(encoder.norm(x)[0])
    return torch.cat(tokens)


@given(frames=st.lists(st.integers(1, 400), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_clips_together_are_clips_alone(frames, seed):
    encoder, clips = make_encoder(), make_clips(frames, seed)
    mel = clips.mel.requires_grad_()
    together = encoder(clips)
    alone = torch.cat([by_definition(encoder, part) for part in torch.split(mel, frames)])
    assert together.shape == (sum(num_tokens(count) for count in frames), 16)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, right = (torch.autograd.grad((x * weights).sum(), mel)[0] for x in (together, alone))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-8 * max(1.0, float(right.abs().max())))


@given(lengths=st.tuples(*[st.integers(1, 130)] * 3))
@settings(max_examples=20, deadline=None)
def test_nothing_leaks_from_neighbours(lengths):
    encoder, clips = make_encoder(), make_clips(lengths)
    before, own, _ = (num_tokens(count) for count in lengths)
    expected = encoder(clips)[before : before + own]
    mel = clips.mel.clone()
    mel[: lengths[0]] = float("nan")
    mel[lengths[0] + lengths[1] :] = float("inf")
    found = encoder(AudioBatch(mel, lengths))[before : before + own]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_chunk_does_not_see_the_next():
    encoder, clips = make_encoder(), make_clips([3 * 96])
    mel = clips.mel.clone()
    mel[96:192] += 1
    changed = (encoder(AudioBatch(mel, clips.frames)) - encoder(clips)).abs().amax(-1) > 1e-9
    assert changed.tolist() == [False] * 12 + [True] * 12 + [False] * 12


def test_loudness_does_not_matter():
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    clip = 0.5 * torch.sin(2 * math.pi * 440 * time) * torch.sin(9 * time) + 0.01 * noise
    encoder = make_encoder(CONFIG.replace(num_mel_bins=80, initializer_range=0.02), torch.float32)
    loud, quiet = (encoder(AudioBatch(log_mel(x), (100,))) for x in (clip, 0.1 * clip))
    torch.testing.assert_close(quiet, loud, rtol=0, atol=2e-3)
    other = encoder(AudioBatch(log_mel(noise), (100,)))
    assert float((other - loud).detach().abs().max()) > 0.1


def test_memory_grows_with_the_length():
    encoder = make_encoder(dtype=torch.float32)

    def kept(frames: Sequence[int]) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = encoder(make_clips(frames))
        assert out.requires_grad
        return sum(sizes.values())

    weights = sum(p.nbytes for p in encoder.parameters())
    short, long = kept([2000]) - weights, kept([16_000]) - weights
    assert 6 * short < long < 8.5 * short
    # A short clip beside a long one costs what it costs alone: nothing is padded to the longest.
    assert kept([2000, *[8] * 20]) - weights < 1.3 * short


@pytest.mark.parametrize(("shape", "frames"), [((20, 5), (10, 11)), ((20, 6), (20,)), ((20, 5), (20, 0))])
def test_frames_that_do_not_fit_are_refused(shape, frames):
    with pytest.raises(ValueError, match="mel values"):
        make_encoder()(AudioBatch(torch.zeros(shape, dtype=torch.float64), frames))
