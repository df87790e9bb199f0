"""One medium of a row read, changed at random and made ready for its encoder; and a batch of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import OmniConfig
from muomni.config.recipe_data import AugmentSpec
from muomni.data.arrays import Floats
from muomni.data.index.media_format import IMAGE
from muomni.data.index.media_index import Reference
from muomni.data.media.audio import load_audio
from muomni.data.media.augment import add_noise, augment_image, change_speed, fitted, mask_mel
from muomni.data.media.features import mel_of
from muomni.data.media.image import load_image, to_patches, token_grid
from muomni.errors import MediaError

if TYPE_CHECKING:
    from muomni.model.inputs import MediaBatch

# By how many frames of 10 ms a decoded sound may differ from what its header says: MP3 pads its ends.
_SLACK = 25


@dataclass(frozen=True)
class Loaded:
    """A picture as patches with its `grid` of patches, or a sound as mel frames (`grid` None); its caption or
    transcript, and the caption's ids."""

    values: Floats
    grid: tuple[int, int] | None
    note: str | None
    note_ids: tuple[int, ...]


def load(
    reference: Reference,
    record: Any,
    frames: int,
    chance: NDArray[np.float64] | None,
    config: OmniConfig,
    augment: AugmentSpec,
    draw: np.random.Generator,
    turn: AbstractContextManager[object] | None = None,
) -> Loaded:
    """Reads and decodes one medium.

    Args:
        record: its MEDIUM of the index.
        frames: how many a sound shall have.
        chance: what decides a sound's change of speed; None for no change.
        draw: for all other changes.
        turn: of large pictures, see `load_image`.

    Raises:
        MediaError: it cannot be read, or is not what it was when the index was made.
    """
    if record["kind"] == IMAGE:
        return _image(reference, (int(record["rows"]), int(record["columns"])), config, augment, draw, turn)
    assert config.audio is not None
    samples = load_audio(reference.source, config.audio.max_seconds)
    found = -(-len(samples) // 160)
    if abs(max(8, found) - int(record["frames"])) > _SLACK:
        raise MediaError(f"{reference.name}: is not as long as it was when its index was made")
    spec = augment.audio
    samples = fitted(samples, frames) if chance is None else change_speed(samples, spec, chance, frames)
    if spec.noise:
        samples = add_noise(samples, spec, draw)
    mel = mel_of(samples, config)
    if spec.time_masks or spec.frequency_masks:
        mel = mask_mel(mel, spec, draw)
    return Loaded(mel, None, reference.note, ())


def _image(
    reference: Reference,
    grid: tuple[int, int],
    config: OmniConfig,
    augment: AugmentSpec,
    draw: np.random.Generator,
    turn: AbstractContextManager[object] | None,
) -> Loaded:
    vision = config.vision
    assert vision is not None
    image = load_image(reference.source, vision, turn)
    if token_grid(image.size, vision) != grid:  # decoded at a part of its size, its aspect was rounded
        image = load_image(reference.source, turn=turn)
    if token_grid(image.size, vision) != grid:
        raise MediaError(f"{reference.name}: has not the shape that it had when its index was made")
    if augment.image != type(augment.image)():
        image = augment_image(image, augment.image, draw)
    patches, shape = to_patches(image, vision)
    return Loaded(patches, shape, reference.note, reference.note_ids)


def media_of(loaded: Sequence[Loaded]) -> "MediaBatch | None":
    """The media of a batch, in the order of their places; None where there are none."""
    import torch

    from muomni.model.inputs import AudioBatch, Captions, ImageBatch, MediaBatch, Transcripts

    pictures = [medium for medium in loaded if medium.grid is not None]
    sounds = [medium for medium in loaded if medium.grid is None]
    if not loaded:
        return None
    images = clips = transcripts = captions = None
    if pictures:
        patches = torch.from_numpy(np.concatenate([picture.values for picture in pictures]))
        images = ImageBatch(patches, tuple(picture.grid for picture in pictures if picture.grid is not None))
    if sounds:
        mel = torch.from_numpy(np.concatenate([sound.values for sound in sounds]))
        clips = AudioBatch(mel, tuple(len(sound.values) for sound in sounds))
    spoken = [(n, sound.note.encode()) for n, sound in enumerate(sounds) if sound.note is not None]
    if spoken:
        targets = torch.frombuffer(bytearray(b"".join(text for _, text in spoken)), dtype=torch.uint8).long() + 1
        transcripts = Transcripts(targets, tuple(len(text) for _, text in spoken), tuple(n for n, _ in spoken))
    named = [(n, picture) for n, picture in enumerate(pictures) if picture.note is not None and picture.note_ids]
    if named:
        groups: dict[str, int] = {}
        same = [groups.setdefault(str(picture.note), len(groups)) for _, picture in named]
        captions = Captions(
            torch.tensor([i for _, picture in named for i in picture.note_ids]),
            tuple(len(picture.note_ids) for _, picture in named),
            tuple(n for n, _ in named),
            torch.tensor(same),
        )
    return MediaBatch(images, clips, transcripts, captions)
