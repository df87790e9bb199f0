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
    """Tells the folder of a codec from those of other models."""
    sample_rate: int = Field(default=16_000, ge=8_000, le=48_000)
    """Of the sound, in Hz."""
    hop_length: int = Field(default=160, ge=16, le=1024)
    """Samples between two spectra; a spectrum's window is four times as long."""
    num_mel_bins: int = Field(default=80, ge=8, le=256)
    """Bands that the encoder hears."""
    strides: Strides = (2, 2)
    """Of the encoder's convolutions; their product is how many spectra a frame of codes stands for."""
    encoder_size: PositiveInt = 192
    """Width of the encoder."""
    encoder_layers: PositiveInt = 2
    """Its blocks before each stride, and behind the last."""
    num_codebooks: int = Field(default=8, ge=1, le=32)
    """K, codes of a frame."""
    codebook_size: int = Field(default=1024, ge=2, le=65_536)
    """Codes are 0 to this, exclusive."""
    latent_size: PositiveInt = 32
    """Numbers of a frame before they are codes."""
    quantizer_dropout: Probability = 0.25
    """Probability that a training clip keeps only its first codes, a random number of them, so that the first ones
    learn to say the most.
    """
    hidden_size: PositiveInt = 256
    """Width of the decoder."""
    intermediate_size: PositiveInt = 768
    """Width of the hidden layer of its blocks."""
    frame_layers: PositiveInt = 3
    """Its blocks at the rate of the codes."""
    num_hidden_layers: PositiveInt = 5
    """Its blocks at the rate of the spectra."""
    kernel_size: int = Field(default=7, ge=2, le=63)
    """Frames that a block's convolution spans, its own and those before it."""

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
    """What a codec learns by: the weights of its losses, each a mean over clips; 0 leaves one out."""

    stft: NonNegative = 1.0
    """Spectra at several resolutions."""
    mel: NonNegative = 1.0
    """Their mel bands, in logarithms."""
    commitment: NonNegative = 0.5
    """How far the encoder's numbers are from what their codes stand for."""
    adversarial: NonNegative = 0.0
    """A discriminator that learns beside the codec to tell its speech from recordings."""
    feature_matching: NonNegative = 2.0
    """Of what the discriminator sees inside; only with `adversarial`."""
    discriminator_start_step: int = Field(default=0, ge=0)
    """The optimizer step with which the discriminator begins."""

    @model_validator(mode="after")
    def _teaches(self) -> "CodecLossSpec":
        if not self.stft and not self.mel:
            raise conflict(
                "mel", self.mel, "the spectra or their mel bands need a weight: nothing else teaches what is said"
            )
        return self


class CodecSpec(Frozen):
    """A speech codec to train; the data are sounds then, or manifests that name them."""

    preset: CodecPreset = "tiny"
    """Where the sizes come from."""
    init_from: str | None = Field(default=None, min_length=1)
    """A codec's run or folder whose weights and sizes are taken instead."""
    overrides: CodecOverrides = CodecOverrides()
    """Changes to the preset."""
    clip_seconds: Positive = 1.0
    """Length of a training clip; rounded down to whole frames."""
    gain_db: NonNegative = 20.0
    """Training clips are made quieter by up to so many decibels, at random."""
    losses: CodecLossSpec = CodecLossSpec()
    """What it learns by."""

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
