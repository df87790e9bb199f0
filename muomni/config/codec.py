"""Sizes of the speech codec."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from muomni.config.base import Frozen, Overrides, Positive, PositiveInt, Probability, conflict

NonNegative = Annotated[float, Field(ge=0)]
CodecPreset = Literal["nano", "tiny"]
Strides = Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(strict=False, min_length=1)]


class CodecConfig(Frozen):
    """The speech codec: mono sound to a few small numbers for every frame, and back."""

    model_type: Literal["muomni-codec"] = "muomni-codec"
    """Tells a codec's folder from those of other models."""
    sample_rate: int = Field(default=16_000, ge=8_000, le=48_000)
    """Sampling rate in Hz."""
    hop_length: int = Field(default=160, ge=16, le=1024)
    """Samples between two spectra; a spectrum's window is four times as long."""
    num_mel_bins: int = Field(default=80, ge=8, le=256)
    """Mel bands of the encoder's input."""
    strides: Strides = (2, 2)
    """Strides of the encoder's convolutions; their product is the number of spectra in a frame of codes."""
    encoder_size: PositiveInt = 192
    """Width of the encoder."""
    encoder_layers: PositiveInt = 2
    """Encoder blocks before each stride, and after the last."""
    num_codebooks: int = Field(default=8, ge=1, le=32)
    """K, codes of a frame."""
    codebook_size: int = Field(default=1024, ge=2, le=65_536)
    """Codes are 0 to this, exclusive."""
    latent_size: PositiveInt = 32
    """Width of a frame before quantization."""
    quantizer_dropout: Probability = 0.25
    """Probability that a training clip keeps only a random number of its first codes, so that the first ones learn to
    carry the most.
    """
    hidden_size: PositiveInt = 256
    """Width of the decoder."""
    intermediate_size: PositiveInt = 768
    """Width of the hidden layer of the decoder's blocks."""
    frame_layers: PositiveInt = 3
    """Decoder blocks at the rate of the codes."""
    num_hidden_layers: PositiveInt = 5
    """Decoder blocks at the rate of the spectra."""
    kernel_size: int = Field(default=7, ge=2, le=63)
    """Frames that a block's causal convolution spans."""

    fixed = frozenset({"model_type", "sample_rate"})

    @property
    def spectra_per_frame(self) -> int:
        """Spectra that one frame of codes stands for."""
        return math.prod(self.strides)

    @property
    def frame_samples(self) -> int:
        """Samples that one frame of codes stands for."""
        return self.hop_length * self.spectra_per_frame

    @property
    def window(self) -> int:
        """Samples of a spectrum."""
        return 4 * self.hop_length

    @property
    def delay(self) -> int:
        """Samples at the end of T frames that are only known with the frames behind them."""
        return self.window - self.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames of codes in a second."""
        return self.sample_rate / self.frame_samples

    @property
    def bits_per_second(self) -> float:
        """Of the codes, when each is stored by itself."""
        return self.frame_rate * self.num_codebooks * math.log2(self.codebook_size)


def codec_preset(name: CodecPreset) -> CodecConfig:
    """Sizes that go with a preset: `nano` for tests, `tiny` (some 4 M parameters) for a CPU."""
    if name == "tiny":
        return CodecConfig()
    return CodecConfig(
        encoder_size=24,
        encoder_layers=1,
        num_codebooks=4,
        codebook_size=64,
        latent_size=12,
        hidden_size=32,
        intermediate_size=64,
        frame_layers=1,
        num_hidden_layers=1,
        kernel_size=3,
    )


class CodecOverrides(Overrides[CodecConfig]):
    """Fields of `CodecConfig` that a recipe changes from the preset."""


class CodecLossSpec(Frozen):
    """Weights of a codec's losses, each a mean over clips; 0 turns one off."""

    stft: NonNegative = 1.0
    """Distance of the spectra at several resolutions."""
    mel: NonNegative = 1.0
    """Distance of the log-mel spectra."""
    commitment: NonNegative = 0.5
    """Distance of the encoder's output from its quantized value."""
    adversarial: NonNegative = 0.0
    """Adversarial loss, from a discriminator that is trained beside the codec."""
    feature_matching: NonNegative = 2.0
    """Distance of the discriminator's hidden states; only with `adversarial`."""
    discriminator_start_step: int = Field(default=0, ge=0)
    """Optimizer step from which the discriminator is trained."""

    @model_validator(mode="after")
    def _teaches(self) -> "CodecLossSpec":
        if not self.stft and not self.mel:
            raise conflict("mel", self.mel, "give stft or mel a weight: the other losses do not train the codec")
        return self


class CodecSpec(Frozen):
    """A speech codec to train; its data are sounds, or manifests that name them."""

    preset: CodecPreset = "tiny"
    """Preset of the sizes."""
    init_from: str | None = Field(default=None, min_length=1)
    """A codec's run or folder whose weights and sizes are used instead."""
    overrides: CodecOverrides = CodecOverrides()
    """Changes to the preset."""
    clip_seconds: Positive = 1.0
    """Length of a training clip; rounded down to whole frames."""
    gain_db: NonNegative = 20.0
    """Largest random attenuation of a training clip, in decibels."""
    losses: CodecLossSpec = CodecLossSpec()
    """Weights of the losses."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "CodecSpec":
        changes = self.overrides.changes
        if self.init_from is not None and changes:
            raise conflict("overrides", ", ".join(changes), 'remove it: "init_from" fixes the sizes')
        config = self.build()
        # The longest window of the losses has 2,048 samples.
        shortest = max(config.frame_samples, config.delay + 2048) / config.sample_rate
        if self.init_from is None and self.clip_seconds < shortest:
            raise conflict("clip_seconds", self.clip_seconds, f"must be at least {shortest:g}")
        return self

    def build(self) -> CodecConfig:
        """The preset with the recipe's changes."""
        return codec_preset(self.preset).replace(**self.overrides.changes)
