"""The speech codec: streams equal whole clips, nothing looks ahead, fast layers equal their definitions."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from muomni.config.codec import CodecConfig, codec_preset
from muomni.errors import CheckpointError, UserError
from muomni.formats.codec import load_codec, save_codec
from muomni.model.codec import SpeechCodec, StreamingDecoder, StreamingEncoder
from muomni.model.codec.decoder import SpectrumHead
from muomni.model.codec.encoder import LogMel
from muomni.model.codec.layers import CausalConv, Depthwise, History
from muomni.model.codec.quantizer import ResidualVectorQuantizer
from muomni.training.codec.losses import spectral_losses

NANO = codec_preset("nano")
FRAME = NANO.frame_samples


def sound(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.linspace(-3, 0, samples, dtype=torch.float64).exp()
    return torch.randn(samples, generator=generator, dtype=torch.float64) * 0.3 * loudness


def make(dtype: torch.dtype = torch.float64) -> SpeechCodec:
    codec = SpeechCodec(NANO, torch.Generator().manual_seed(0)).to(dtype).eval()
    # Tables as after some training.
    torch.manual_seed(0)
    codec.train()(torch.stack([sound(40 * NANO.frame_samples, n) for n in range(8)]).to(dtype))
    codec.quantizer.update()
    codec.eval()
    # Small biases, so that what stands in the place of the past matters.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in codec.named_parameters():
            if name.endswith("bias"):
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.1)
    return codec


CODEC = make()


def some_codes(rows: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, NANO.codebook_size, (rows, NANO.num_codebooks, frames), generator=generator)


def cut(total: int, sizes: list[int]) -> list[slice]:
    """Slices of these sizes one behind the other, and what is left."""
    ends = [0]
    for size in sizes:
        ends.append(min(total, ends[-1] + size))
    ends.append(total)
    return [slice(a, b) for a, b in pairwise(ends) if b > a]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 5), max_size=8), st.integers(1, 12), st.integers(0, 9))
def test_decoding_a_stream_is_decoding_the_clip(rows: int, sizes: list[int], frames: int, seed: int) -> None:
    codes = some_codes(rows, frames, seed)
    whole = CODEC.decode(codes)
    stream = StreamingDecoder(CODEC)
    pieces = [stream.push(codes[:, :, part]) for part in cut(frames, sizes)]
    assert pieces[0].shape[1] == CODEC.num_samples(cut(frames, sizes)[0].stop)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-9, rtol=0)


def test_decoding_a_stream_in_fp32_is_decoding_the_clip_up_to_rounding() -> None:
    codec = make(torch.float32)
    codes = some_codes(2, 20)
    whole = codec.decode(codes)
    stream = StreamingDecoder(codec)
    pieces = torch.cat([stream.push(codes[:, :, t : t + 1]) for t in range(20)], 1)
    rounding = (whole.double() - CODEC.decode(codes)).abs().max()
    assert (pieces - whole).abs().max() <= 2 * rounding


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5000), st.lists(st.integers(0, 2000), max_size=6), st.integers(0, 9))
def test_encoding_a_stream_is_encoding_the_clip(samples: int, sizes: list[int], seed: int) -> None:
    clip = sound(samples, seed)
    stream = StreamingEncoder(CODEC)
    pieces = [stream.push(clip[part]) for part in cut(samples, sizes)] + [stream.finish()]
    assert torch.equal(torch.cat(pieces, 1), CODEC.encode(clip))


def test_a_stream_goes_on_with_some_rows_and_does_not_grow() -> None:
    codes = some_codes(3, 9)
    stream = StreamingDecoder(CODEC)
    first = stream.push(codes[:, :, :4])
    held = sum(tail.numel() for tail in stream._history._tails.values())
    stream.select(torch.tensor([2, 0]))
    second = stream.push(codes[[2, 0], :, 4:])
    torch.testing.assert_close(torch.cat((first[[2, 0]], second), 1), CODEC.decode(codes[[2, 0]]), atol=1e-9, rtol=0)
    assert stored(stream) == held * 8 * 2 // 3
    # Of short pieces it keeps no more than another such piece.
    for t in range(9):
        stream.push(codes[:2, :, t : t + 1])
        assert stored(stream) <= 2 * held * 8 * 2 // 3


def stored(stream: StreamingDecoder) -> int:
    """Bytes that a stream keeps."""
    return sum(tail.untyped_storage().nbytes() for tail in stream._history._tails.values())


def test_nothing_looks_ahead() -> None:
    clip = sound(10 * FRAME)
    changed = clip.clone()
    changed[6 * FRAME :] = sound(4 * FRAME, seed=1)
    before, after = CODEC.encode(clip), CODEC.encode(changed)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.equal(before[:, 6:], after[:, 6:])
    codes = some_codes(1, 10)[0]
    other = codes.clone()
    other[:, 6:] = some_codes(1, 4, seed=1)[0]
    known = CODEC.num_samples(6)
    x, y = CODEC.decode(codes), CODEC.decode(other)
    torch.testing.assert_close(x[:known], y[:known], atol=1e-12, rtol=0)
    assert (x[known : known + NANO.hop_length] - y[known : known + NANO.hop_length]).abs().max() > 1e-6


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_clips_of_any_lengths_are_coded_as_if_alone(lengths: list[int]) -> None:
    clips = [sound(length, n) for n, length in enumerate(lengths)]
    together = CODEC.encode(clips)
    assert [codes.shape[1] for codes in together] == [CODEC.num_frames(length) for length in lengths]
    for clip, codes in zip(clips, together, strict=True):
        assert torch.equal(codes, CODEC.encode(clip)) and codes.dtype == torch.int64
    for codes, samples in zip(together, CODEC.decode(together), strict=True):
        torch.testing.assert_close(samples, CODEC.decode(codes), atol=1e-9, rtol=0)
    assert all(len(CODEC.decode(codes)) >= length for codes, length in zip(together, lengths, strict=True))


def test_the_training_pass_is_encode_and_decode() -> None:
    samples = torch.stack([sound(5 * FRAME, n) for n in range(2)])
    out = CODEC(samples)
    assert torch.equal(out.codes, torch.stack([CODEC.encode(row)[:, :5] for row in samples]))
    torch.testing.assert_close(out.samples, CODEC.decode(out.codes), atol=1e-9, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_causal_conv_is_torchs_on_the_frames_so_far(stride: int) -> None:
    layer = CausalConv(3, 4, kernel=2 * stride + 1, stride=stride).double()
    x = torch.randn(2, 6 * stride, 3, dtype=torch.float64)
    kernel = layer.linear.weight.view(4, 3, -1)
    padded = F.pad(x.transpose(1, 2), (layer.kernel - stride, 0))
    wanted = F.conv1d(padded, kernel, layer.linear.bias, stride=stride)
    torch.testing.assert_close(layer(x), wanted.transpose(1, 2))


@pytest.mark.parametrize("frames", [1, 16, 17])
def test_a_depthwise_conv_is_torchs_grouped_one(frames: int) -> None:
    layer = Depthwise(5, 4).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, frames, 5, dtype=torch.float64)
    wanted = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), layer.weight.T[:, None], layer.bias, groups=5)
    torch.testing.assert_close(layer(x), wanted.transpose(1, 2))


def test_log_mel_is_the_power_of_the_last_window_in_each_band() -> None:
    mel = LogMel(NANO)
    hertz = 1000.0
    time = torch.arange(4 * FRAME, dtype=torch.float64) / NANO.sample_rate
    wave = torch.sin(2 * math.pi * hertz * time)
    found = mel(wave[None])[0, -1]
    window = wave[-NANO.window :] * torch.hann_window(NANO.window, dtype=torch.float64)
    bins = torch.stack([(window * torch.exp(-2j * math.pi * k * torch.arange(NANO.window) / NANO.window)).sum()
                        for k in range(NANO.window // 2 + 1)])  # fmt: skip
    power = (bins.abs() * 4 / NANO.window).square() @ mel.filters
    torch.testing.assert_close(found, (power.clamp(min=1e-7).log10() + 3) / 4)
    # A full wave in the middle of a band counts about one there, and so silence is far below it.
    assert power.max() > 0.2
    assert mel(torch.zeros(1, FRAME, dtype=torch.float64)).max() == -1


class Given(nn.Module):
    """A layer that answers with what it was given."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values


def test_the_head_inverts_the_spectra_of_a_clip() -> None:
    """From the spectra of each window, written out by the definition, comes the clip itself."""
    head = SpectrumHead(NANO)
    clip = sound(3 * FRAME)
    padded = F.pad(clip, (NANO.delay, 0))
    shape = torch.hann_window(NANO.window, dtype=torch.float64)
    spectra = [
        torch.fft.rfft(padded[f * NANO.hop_length : f * NANO.hop_length + NANO.window] * shape)
        for f in range(len(clip) // NANO.hop_length)
    ]
    spectrum = torch.stack(spectra)[None] * (4 / NANO.window)
    head.linear = Given(  # type: ignore[assignment]
        torch.cat((spectrum.abs().log() + 6.0, spectrum.angle()), -1)
    )
    samples = head(torch.empty(1, len(spectra), 1, dtype=torch.float64))[0, NANO.delay :]
    torch.testing.assert_close(samples, clip[: -NANO.delay], atol=1e-9, rtol=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99))
def test_quantising_is_taking_the_nearest_vector_of_what_is_left(K: int, seed: int) -> None:
    quantizer = ResidualVectorQuantizer(NANO.replace(num_codebooks=K, codebook_size=5, latent_size=3)).double()
    draw = torch.Generator().manual_seed(seed)
    quantizer.counts.copy_(torch.rand(K, 5, generator=draw) + 0.1)
    quantizer.sums.copy_(torch.randn(K, 5, 3, generator=draw))
    latents = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
    values, codes, commitment = quantizer.eval()(latents)
    distance = 0.0
    for b in range(2):
        for t in range(4):
            left = latents[b, t]
            for k in range(K):
                vectors = [quantizer.sums[k, v] / quantizer.counts[k, v] for v in range(5)]
                nearest = min(range(5), key=lambda v: float((left - vectors[v]).square().sum()))
                assert codes[b, k, t] == nearest
                left = left - vectors[nearest]
            torch.testing.assert_close(values[b, t], latents[b, t] - left)
            distance += float(left.square().mean()) / 4
    assert float(commitment) == pytest.approx(distance)
    torch.testing.assert_close(quantizer.values(codes, torch.float64), values)


def test_tables_follow_the_latents_and_dead_codes_come_back() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(NANO.replace(quantizer_dropout=0.0, codebook_size=32)).train()
    before: list[Any] = []
    last: list[Any] = []
    for n in range(60):
        _, codes, commitment = quantizer(torch.randn(8, 25, NANO.latent_size) + 3.0)
        quantizer.update()
        before.append(float(commitment.detach()) / 8)
        last = [*last[-9:], codes.transpose(0, 1).flatten(1)]
        if n == 0:
            # Codes that nothing is near to.
            quantizer.sums[:, :20] += 1e3
            quantizer.counts[:, :20] = 1e-6
    assert min(len(torch.unique(row)) for row in torch.cat(last, 1)) >= 30
    # The step behind the damage had a dozen codes.
    assert max(before[-10:]) < before[1] and quantizer.sums.isfinite().all()
    assert quantizer.tables[0].mean() == pytest.approx(3.0, abs=0.3)


def test_statistics_add_up_over_micro_batches() -> None:
    latents = torch.randn(4, 25, NANO.latent_size)
    counts = []
    for size in (4, 2):
        torch.manual_seed(0)
        quantizer = ResidualVectorQuantizer(NANO.replace(quantizer_dropout=0.0)).train()
        quantizer(latents)
        quantizer.update()
        for part in latents.split(size):
            quantizer(part)
        counts.append(quantizer.seen_counts.clone())
    assert torch.equal(*counts) and counts[0].sum() == 4 * 25 * NANO.num_codebooks


def test_gradients_pass_the_rounding_and_reach_every_weight() -> None:
    codec = make().train()
    samples = torch.stack([sound(4 * FRAME, n) for n in range(3)])
    out = codec(samples)
    losses = spectral_losses(out.samples, samples[:, : out.samples.shape[1]], 16_000)
    (sum(losses.values()) + out.commitment).backward()
    without = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_latents_that_are_no_numbers_leave_the_tables_alone() -> None:
    quantizer = ResidualVectorQuantizer(NANO).train()
    quantizer(torch.randn(4, 5, NANO.latent_size))
    quantizer.update()
    before = quantizer.tables
    quantizer(torch.full((4, 5, NANO.latent_size), math.nan))
    quantizer.update()
    torch.testing.assert_close(quantizer.tables, before)


def test_rows_go_without_their_last_codes_only_in_training() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(NANO.replace(quantizer_dropout=0.9)).train()
    latents = torch.randn(200, 2, NANO.latent_size)
    quantizer(latents)
    quantizer.update()
    tables = quantizer.tables
    values, codes, _ = quantizer(latents)
    parts = torch.stack([table[codes[:, k]] for k, table in enumerate(tables)]).cumsum(0)
    counts = (parts - values).square().sum((2, 3)).argmin(0) + 1
    assert set(counts.tolist()) == {1, 2, 3, 4}
    torch.testing.assert_close(parts[counts - 1, torch.arange(200)], values)
    values, codes, _ = quantizer.eval()(latents)
    torch.testing.assert_close(quantizer.values(codes, torch.float32), values)


def test_losses_are_those_of_their_definition_and_zero_for_the_same_clip() -> None:
    x, y = sound(4000)[None], sound(4000, seed=1)[None]
    found = spectral_losses(x, y, 16_000)
    assert max(spectral_losses(x, x, 16_000).values()) < 1e-4
    wanted = 0.0
    for window in (2048, 1024, 512, 256):
        shape = torch.hann_window(window, dtype=torch.float64)
        X, Y = (
            torch.stft(s, window, window // 4, window=shape, center=False, return_complex=True).abs() * 4 / window
            for s in (x, y)
        )
        floor = Y.numel() * 3e-4**2
        wanted += float((X - Y).norm() / (Y.square().sum() + floor).sqrt()) / 4
        wanted += float(((X + 3e-4).log() - (Y + 3e-4).log()).abs().mean()) / 4
    assert float(found["stft"]) == pytest.approx(wanted, rel=1e-4)
    silent = torch.zeros(1, 4000, dtype=torch.float64, requires_grad=True)
    sum(spectral_losses(silent, torch.zeros_like(x), 16_000).values()).backward()
    assert silent.grad is not None and silent.grad.isfinite().all()


def test_under_autocast_samples_stay_near_those_of_fp32() -> None:
    codec = make(torch.float32)
    values = codec.quantizer.values(some_codes(1, 12), torch.float32)
    plain = codec.decoder(values)
    with torch.autocast("cpu", torch.bfloat16):
        low = codec.decoder(values)
    assert low.dtype == torch.float32
    assert (low - plain).norm() < 0.1 * plain.norm()


def test_a_folder_gives_the_same_codec_back(tmp_path: Path) -> None:
    codec = make(torch.float32)
    (tmp_path / "codec").mkdir()
    save_codec(codec, tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    assert again.config == codec.config and not again.training
    codes = some_codes(1, 3)[0]
    assert torch.equal(again.decode(codes), codec.decode(codes))
    weights = tmp_path / "codec" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        load_codec(tmp_path / "codec")
    (tmp_path / "codec" / "config.json").write_text('{"model_type": "muomni"}')
    with pytest.raises(UserError, match="not a speech codec"):
        load_codec(tmp_path / "codec")


def test_figures_of_the_presets() -> None:
    tiny = codec_preset("tiny")
    assert tiny.frame_rate == 25 and tiny.bits_per_second <= 3000
    with torch.device("meta"):
        assert 2e6 < SpeechCodec(tiny).num_parameters() < 6e6
    codec = SpeechCodec(NANO)
    assert (codec.sample_rate, codec.num_codebooks, codec.codebook_size) == (16_000, 4, 64)
    assert codec.num_frames(1) == 1 and codec.num_samples(1) == FRAME - NANO.delay


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="65536"):
        CodecConfig(codebook_size=65_537)
    for codes, word in (
        (torch.zeros(3, 5, dtype=torch.int64), "codes must be"),
        (torch.zeros(4, 0, dtype=torch.int64), "at least one"),
        (torch.full((4, 2), 64), "0 to 63"),
        (torch.full((4, 2), -1), "0 to 63"),
        (torch.zeros(4, 2), "integers"),
    ):
        with pytest.raises(ValueError, match=word):
            CODEC.decode(codes)
    with pytest.raises(ValueError, match=r"\(S,\) samples"):
        CODEC.encode(torch.zeros(0))
    with pytest.raises(ValueError, match="no clips"):
        CODEC.encode([])
    with pytest.raises(ValueError, match="multiple"):
        CODEC(torch.zeros(1, FRAME + 1))
    stream = StreamingEncoder(CODEC)
    with pytest.raises(ValueError, match="nothing"):
        stream.finish()


def test_a_history_remembers_the_last_frames() -> None:
    history, layer = History(), nn.Identity()
    x = torch.arange(5.0).view(1, 5, 1)
    assert history.extend(layer, x[:, :1], 2).flatten().tolist() == [0, 0, 0]
    assert history.extend(layer, x[:, 1:3], 2).flatten().tolist() == [0, 0, 1, 2]
    assert history.extend(layer, x[:, 3:], 2).flatten().tolist() == [1, 2, 3, 4]
