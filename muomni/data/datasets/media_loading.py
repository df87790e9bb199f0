"""Reads and augments the media of a row, and makes one batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muomni.config.recipe_data import AugmentSpec
from muomni.data.index.token_index import IMAGE, Reference
from muomni.data.media.augment import add_noise, augment_image, change_speed, fitted, mask_mel
from muomni.data.media.image import token_grid
from muomni.data.media.processor import MediaFeatures, MediaProcessor
from muomni.errors import MediaError
from muomni.ops.audio_frames import num_frames

if TYPE_CHECKING:
    from muomni.model.inputs import MediaBatch

# Frames of 10 ms by which a decoded sound may differ from its header: MP3 pads its ends.
_SLACK = 25


@dataclass(frozen=True)
class Loaded:
    """A medium's features with its caption or transcript, and the caption's token ids."""

    features: MediaFeatures
    note: str | None
    note_ids: tuple[int, ...]


def load(
    reference: Reference,
    record: Any,
    frames: int,
    chance: NDArray[np.float64] | None,
    processor: MediaProcessor,
    augment: AugmentSpec,
    draw: np.random.Generator,
) -> Loaded:
    """Reads and decodes one medium.

    Args:
        reference: where it is.
        record: its MEDIUM of the index.
        frames: how many a sound shall have.
        chance: what decides a sound's change of speed; None for no change.
        processor: of the model that the index was made for.
        augment: how much is changed at random.
        draw: for all other changes.

    Raises:
        MediaError: it cannot be read, or is not what it was when the index was made.
    """
    if record["kind"] == IMAGE:
        picture = processor.picture(reference.source)
        if token_grid(picture.size, processor.vision) != (int(record["rows"]), int(record["columns"])):
            raise MediaError(f"{reference.name}: has not the shape that it had when its index was made")
        if augment.image != type(augment.image)():
            picture = augment_image(picture, augment.image, draw)
        return Loaded(processor.patches(picture), reference.note, reference.note_ids)
    samples = processor.samples(reference.source)
    if abs(num_frames(len(samples)) - int(record["frames"])) > _SLACK:
        raise MediaError(f"{reference.name}: is not as long as it was when its index was made")
    spec = augment.audio
    samples = fitted(samples, frames) if chance is None else change_speed(samples, spec, chance, frames)
    if spec.noise:
        samples = add_noise(samples, spec, draw)
    features = processor.mel(samples)
    if spec.time_masks or spec.frequency_masks:
        features = MediaFeatures(mask_mel(features.values, spec, draw))
    return Loaded(features, reference.note, ())


def media_of(loaded: Sequence[Loaded]) -> "MediaBatch | None":
    """The media of a batch, in the order of their places; None where there are none."""
    import torch

    from muomni.model.inputs import AudioBatch, Captions, ImageBatch, MediaBatch, Transcripts

    pictures = [medium for medium in loaded if medium.features.grid is not None]
    sounds = [medium for medium in loaded if medium.features.grid is None]
    if not loaded:
        return None
    images = clips = transcripts = captions = None
    if pictures:
        patches = torch.from_numpy(np.concatenate([picture.features.values for picture in pictures]))
        images = ImageBatch(patches, tuple(grid for picture in pictures if (grid := picture.features.grid) is not None))
    if sounds:
        mel = torch.from_numpy(np.concatenate([sound.features.values for sound in sounds]))
        clips = AudioBatch(mel, tuple(len(sound.features.values) for sound in sounds))
    spoken = [(n, sound.note.encode()) for n, sound in enumerate(sounds) if sound.note is not None]
    if spoken:
        transcripts = Transcripts.of(spoken)
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
