"""Pictures and sounds as the encoders of one model take them: how many tokens each is, and its features.

Everything that opens a medium asks here: training, the token index, inference and the check of data. A video is a
list of pictures.

P patch size, M mel bins, F frames of 10 ms.
"""

import math
import threading
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from muomni.config.encoders import AudioEncoderConfig, VisionEncoderConfig
from muomni.data.arrays import Floats
from muomni.data.media.audio import Samples, audio_seconds, load_audio
from muomni.data.media.image import load_image, picture_size, to_patches, token_grid
from muomni.data.media.media_ref import Kind, MediaContent, blocks_of
from muomni.errors import UserError
from muomni.ops.audio_frames import SAMPLE_RATE, num_frames, num_tokens

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class MediaSize:
    """What a medium takes.

    Attributes:
        rows, columns: the token grid of a picture; 0 for a sound.
        frames: of a sound; 0 for a picture.
        tokens: that its encoder gives.
        pixels: of a picture at its full size, where its header was read for it.
    """

    rows: int
    columns: int
    frames: int
    tokens: int
    pixels: int = field(default=0, compare=False)


@dataclass(frozen=True)
class MediaFeatures:
    """What an encoder reads.

    Attributes:
        values: a picture's patches (N, 3·P·P), or a sound's log-mel frames (F, M); float32.
        grid: rows and columns of a picture's patches; None for a sound.
    """

    values: Floats
    grid: tuple[int, int] | None = None


class MediaProcessor:
    """Opens and decodes media for the encoders of a model. Any thread may use it.

    Of the pictures that are large (see `load_image`) threads decode one at a time.

    Args:
        vision, audio: the encoders; None where the model has none.
    """

    def __init__(self, vision: VisionEncoderConfig | None, audio: AudioEncoderConfig | None) -> None:
        self._vision = vision
        self._audio = audio
        self._turn = threading.Lock()

    @property
    def vision(self) -> VisionEncoderConfig:
        """The vision encoder's sizes; a UserError where the model has none."""
        if self._vision is None:
            raise UserError("this model has no vision encoder: it takes no pictures")
        return self._vision

    @property
    def audio(self) -> AudioEncoderConfig:
        """The audio encoder's sizes; a UserError where the model has none."""
        if self._audio is None:
            raise UserError("this model has no audio encoder: it takes no sounds")
        return self._audio

    def size(self, kind: Kind, source: Any, *, exact: bool = False) -> MediaSize:
        """How many tokens a medium takes, from its header.

        Args:
            kind: what it is.
            source: what `load_image` or `load_audio` take.
            exact: decode a sound; its header may be wrong by one token.

        Raises:
            MediaError: it cannot be read, or lasts longer than the model hears.
        """
        if kind == "image":
            width, height = picture_size(source)
            rows, columns = token_grid((width, height), self.vision)
            return MediaSize(rows, columns, 0, rows * columns, width * height)
        seconds = None if exact else audio_seconds(source, self.audio.max_seconds)
        if seconds is None or seconds > self.audio.max_seconds:  # what is too long says so when it is decoded
            frames = num_frames(len(self.samples(source)))
        else:
            frames = num_frames(round(seconds * SAMPLE_RATE))
        return MediaSize(0, 0, frames, num_tokens(frames))

    def picture(self, source: Any, *, full: bool = False) -> "Image":
        """The picture decoded for the encoder: of the grid that `size` gives, large ones made smaller.

        Args:
            source: what `load_image` takes.
            full: at its full size.

        Raises:
            MediaError: it cannot be read.
        """
        return load_image(source, None if full else self.vision, self._turn)

    def patches(self, picture: "Image") -> MediaFeatures:
        """The features of a decoded picture."""
        return MediaFeatures(*to_patches(picture, self.vision))

    def samples(self, source: Any) -> Samples:
        """The sound decoded, (S,) float32 at 16 kHz.

        Raises:
            MediaError: it cannot be read, or lasts longer than the model hears.
        """
        return load_audio(source, self.audio.max_seconds)

    def mel(self, samples: Samples) -> MediaFeatures:
        """The features of a decoded sound."""
        import torch

        from muomni.ops.log_mel import log_mel, whisper_log_mel

        make = whisper_log_mel if self.audio.kind == "whisper" else log_mel
        return MediaFeatures(make(torch.from_numpy(samples), self.audio.num_mel_bins).numpy())

    def features(self, kind: Kind, source: Any) -> MediaFeatures:
        """Decodes a medium and makes its features.

        Raises:
            MediaError: it cannot be read, or lasts longer than the model hears.
        """
        return self.patches(self.picture(source)) if kind == "image" else self.mel(self.samples(source))

    def size_of(self, features: MediaFeatures) -> MediaSize:
        """How many tokens the encoder makes of features."""
        if features.grid is None:
            frames = len(features.values)
            return MediaSize(0, 0, frames, num_tokens(frames))
        rows, columns = (count // self.vision.pixel_shuffle_factor for count in features.grid)
        return MediaSize(rows, columns, 0, rows * columns)


def content_hash(source: Any) -> bytes:
    """A hash of what a picture or sound holds; a file and its bytes have the same.

    Raises:
        MediaError: it cannot be read.
    """
    if isinstance(source, MediaContent):
        return source.digest
    digest = blake2b(digest_size=16)
    if type(source).__module__.partition(".")[0] == "PIL":
        picture = load_image(source)
        digest.update(f"pixels {picture.size} ".encode() + picture.tobytes())
    elif isinstance(source, tuple):
        digest.update(b"samples " + load_audio(source, math.inf).tobytes())
    else:
        for block in blocks_of(source):
            digest.update(block)
    return digest.digest()
