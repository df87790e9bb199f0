"""Pictures and sounds as the encoders take them: ragged inputs one behind the other, without padding.

Legend: N patches of all pictures, P patch size, F frames of all clips, M mel bins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from muomni.ops.audio_frames import ctc_steps


@dataclass(frozen=True)
class ImageBatch:
    """Pictures cut into patches.

    Attributes:
        patches: (N, 3·P·P) float32, values −1 to 1; inside a patch channel, row, column. Patches of one picture
            stand row by row, those of the next follow.
        grids: (rows, columns) of each picture, in patches; known on the host.
        stand_in: no placeholder takes its features: it is there so that every process of a training step computes
            the encoder.
    """

    patches: Tensor
    grids: tuple[tuple[int, int], ...]
    stand_in: bool = False

    def to(self, device: torch.device | str) -> Self:
        """The same on a device; to a GPU the copy runs beside the computation."""
        return replace(self, patches=moved(self.patches, torch.device(device)))


@dataclass(frozen=True)
class AudioBatch:
    """Sounds as log-mel frames, 100 a second.

    Attributes:
        mel: (F, M) float32; frames of one clip, then those of the next.
        frames: of each clip, at least 1; known on the host.
        stand_in: as of `ImageBatch`.
    """

    mel: Tensor
    frames: tuple[int, ...]
    stand_in: bool = False

    def to(self, device: torch.device | str) -> Self:
        """The same on a device; to a GPU the copy runs beside the computation."""
        return replace(self, mel=moved(self.mel, torch.device(device)))


@dataclass(frozen=True)
class Transcripts:
    """What is said in some of the clips of a batch, for the CTC loss.

    Attributes:
        targets: (S,) int64, UTF-8 bytes plus 1 (0 is CTC's blank), one transcript behind the other.
        lengths: bytes of each.
        steps: CTC steps that each needs at least: one for each byte, and one between two equal bytes.
        clips: which clip each belongs to.
    """

    targets: Tensor
    lengths: tuple[int, ...]
    steps: tuple[int, ...]
    clips: tuple[int, ...]

    @classmethod
    def of(cls, texts: Iterable[tuple[int, bytes]], device: torch.device | str = "cpu") -> Self:
        """Transcripts in UTF-8, each with the number of its clip."""
        clips, said = zip(*texts, strict=True)
        targets = torch.frombuffer(bytearray(b"".join(said)) or bytearray(1), dtype=torch.uint8).long() + 1
        steps = tuple(map(ctc_steps, said))
        lengths = tuple(map(len, said))
        return cls(targets[: sum(lengths)].to(device), lengths, steps, clips)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return replace(self, targets=moved(self.targets, torch.device(device)))


@dataclass(frozen=True)
class Captions:
    """What some of the pictures of a batch are called, for the contrastive loss.

    Attributes:
        ids: (S,) int64 token ids, one caption behind the other.
        lengths: tokens of each.
        images: which picture each belongs to.
        groups: (number of captions,) int64; equal captions have equal numbers, and are no negatives of each other.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    images: tuple[int, ...]
    groups: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        place = torch.device(device)
        return replace(self, ids=moved(self.ids, place), groups=moved(self.groups, place))


@dataclass(frozen=True)
class MediaBatch:
    """All that a batch holds besides its tokens, in the order of their places in it.

    Attributes:
        images, clips: None where there are none.
        transcripts, captions: None where there are none.
    """

    images: ImageBatch | None = None
    clips: AudioBatch | None = None
    transcripts: Transcripts | None = None
    captions: Captions | None = None

    @property
    def stand_ins(self) -> frozenset[str]:
        """Which of `image` and `audio` no placeholder takes."""
        given = (("image", self.images), ("audio", self.clips))
        return frozenset(name for name, batch in given if batch is not None and batch.stand_in)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(
            None if self.images is None else self.images.to(device),
            None if self.clips is None else self.clips.to(device),
            None if self.transcripts is None else self.transcripts.to(device),
            None if self.captions is None else self.captions.to(device),
        )


def row_length(used: int) -> int:
    """How long a row of `used` patches, frames or tokens is made: up to an eighth more, eight lengths an octave.

    Each batch has another number of them, and matrix products in low precision are compiled and kept for every
    number they meet: on a CPU that cost 10 MB a step, without an end.
    """
    step = max(64, 1 << max(0, used.bit_length() - 4))
    return -(-used // step) * step


def filled(bounds: Sequence[int]) -> list[int]:
    """Bounds of documents, and of as many more, of up to 64, as fill a row of `row_length`; nobody reads those."""
    used = bounds[-1]
    length = row_length(used)
    return [*bounds, *range(used + 64, length, 64), *([length] if length > used else [])]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory to a GPU, so that nothing waits."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)
