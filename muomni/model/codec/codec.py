"""The speech codec as one module: `encode` and `decode` for clips, `forward` for training.

S samples become T = ceil((S + delay) / frame_samples) frames of K codes; T frames give T·frame_samples − delay
samples, at least S. Frame t is known with sample (t + 1)·frame_samples, nothing looks further ahead; see `stream`
for sound that comes piece by piece.

Legend: B rows, S samples, K codebooks, T frames of codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config.codec import CodecConfig
from muomni.model.codec.decoder import CodecDecoder
from muomni.model.codec.encoder import CodecEncoder
from muomni.model.codec.quantizer import ResidualVectorQuantizer


@dataclass(frozen=True)
class CodecOutput:
    """What training sees.

    Attributes:
        samples: (B, S − delay) as the codes give them back.
        codes: (B, K, T) int64.
        commitment: scalar, summed over rows; see `ResidualVectorQuantizer`.
    """

    samples: Tensor
    codes: Tensor
    commitment: Tensor


class SpeechCodec(nn.Module):
    """Speech to K codes a frame and back.

    Args:
        config: the sizes.
        generator: draws the initial weights; None for torch's own.
    """

    def __init__(self, config: CodecConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = CodecEncoder(config)
        self.quantizer = ResidualVectorQuantizer(config)
        self.decoder = CodecDecoder(config)
        self.encoder.init_weights(generator)
        self.decoder.init_weights(generator)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes a second."""
        return self.config.frame_rate

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes are 0 to this, exclusive."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the samples that are decoded."""
        return self.decoder.norm.weight.dtype

    def num_parameters(self) -> int:
        """Weights in all."""
        return sum(p.numel() for p in self.parameters())

    def num_frames(self, samples: int) -> int:
        """T for S samples."""
        return -(-(samples + self.config.delay) // self.config.frame_samples)

    def num_samples(self, frames: int) -> int:
        """Samples that T ≥ 1 frames give."""
        return frames * self.config.frame_samples - self.config.delay

    def forward(self, samples: Tensor) -> CodecOutput:
        """Through codes and back, for training.

        Args:
            samples: (B, S), S a multiple of `frame_samples`.

        Raises:
            ValueError: another shape.
        """
        size = self.config.frame_samples
        if samples.ndim != 2 or samples.shape[1] == 0 or samples.shape[1] % size:
            raise ValueError(f"samples must be (B, S), S a multiple of {size}, and are {tuple(samples.shape)}")
        values, codes, commitment = self.quantizer(self.encoder(samples))
        return CodecOutput(self.decoder(values)[:, self.config.delay :], codes, commitment)

    @overload
    def encode(self, samples: Tensor) -> Tensor: ...
    @overload
    def encode(self, samples: Sequence[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(self, samples: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The codes of one clip, or of several of any lengths; those around a clip do not matter to it.

        Args:
            samples: (S,) each, S ≥ 1, values −1 to 1.

        Returns:
            (K, T) int64 each, T = `num_frames(S)`.

        Raises:
            ValueError: another shape.
        """
        if isinstance(samples, Tensor):
            return self.encode([samples])[0]
        _check(samples, ndim=1, what="a clip is (S,) samples")
        counts = [self.num_frames(len(clip)) for clip in samples]
        length = max(counts) * self.config.frame_samples
        # Zeros behind a clip do not reach it: nothing looks ahead.
        rows = torch.stack([F.pad(clip.to(self.device, self.dtype), (0, length - len(clip))) for clip in samples])
        _, codes, _ = self.quantizer(self.encoder(rows))
        return [codes[n, :, :count].clone() for n, count in enumerate(counts)]

    @overload
    def decode(self, codes: Tensor) -> Tensor: ...
    @overload
    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def decode(self, codes: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The samples of one clip, or of several of any lengths; those around a clip do not matter to it.

        Args:
            codes: (K, T) int64 each, T ≥ 1; a tensor (B, K, T) is B clips of one length.

        Returns:
            (S,) each, S = `num_samples(T)`; (B, S) for a tensor (B, K, T).

        Raises:
            ValueError: another shape, or a code that there is not.
        """
        if isinstance(codes, Tensor) and codes.ndim == 3:
            return torch.stack(self.decode(list(codes)))
        if isinstance(codes, Tensor):
            return self.decode([codes])[0]
        _check(codes, ndim=2, what=f"a clip is ({self.num_codebooks}, T) codes")
        counts = [clip.shape[1] for clip in codes]
        rows = torch.stack([F.pad(clip.to(self.device), (0, max(counts) - clip.shape[1])) for clip in codes])
        self.check_codes(rows)
        samples = self.decoder(self.quantizer.values(rows, self.dtype))[:, self.config.delay :]
        return [samples[n, : self.num_samples(count)].clone() for n, count in enumerate(counts)]

    def check_codes(self, codes: Tensor) -> None:
        """Refuses what are no codes.

        Raises:
            ValueError: `codes` are not (B, K, T) integers from 0 to codebook_size.
        """
        if codes.ndim != 3 or codes.shape[1] != self.num_codebooks or codes.is_floating_point():
            raise ValueError(
                f"codes must be (B, {self.num_codebooks}, T) integers, and are {tuple(codes.shape)} of {codes.dtype}"
            )
        if codes.numel():
            low, high = torch.stack(codes.aminmax()).tolist()
            if low < 0 or high >= self.codebook_size:
                raise ValueError(f"codes must be 0 to {self.codebook_size - 1}, and there are {low} to {high}")


def _check(clips: Sequence[Tensor], ndim: int, what: str) -> None:
    if not clips:
        raise ValueError("no clips were given")
    for clip in clips:
        if clip.ndim != ndim or clip.shape[-1] == 0:
            raise ValueError(f"{what}, at least one, and this is {tuple(clip.shape)}")
