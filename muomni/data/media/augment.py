"""Random changes of pictures and sounds in training. All that is drawn comes from the generator that is given."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muomni.config.recipe_data import AudioAugmentSpec, ImageAugmentSpec
from muomni.data.arrays import Floats
from muomni.ops.audio_frames import FRAMES_PER_TOKEN, HOP

if TYPE_CHECKING:
    from PIL.Image import Image


def augment_image(image: "Image", spec: ImageAugmentSpec, draw: np.random.Generator) -> "Image":
    """The picture moved, turned, scaled and recoloured at random.

    Args:
        image: RGB. Its size stays; what is uncovered takes the colour of the edge (the median of the corners).
        spec: how much.
        draw: decides.
    """
    from PIL import ImageEnhance, ImageFilter

    # Each draw is made whether it is used or not, so that one setting does not change another's draws.
    x, y, zoom, angle = draw.uniform(-1, 1, 4)
    colours = 1 + spec.color_jitter * draw.uniform(-1, 1, 3)
    grey, blur = draw.uniform(size=2)
    if spec.shift or spec.scale or spec.rotate:
        image = _moved(
            image,
            (x * spec.shift * image.width, y * spec.shift * image.height),
            math.exp(zoom * math.log1p(spec.scale)),
            math.radians(angle * spec.rotate),
        )
    if spec.color_jitter:
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours, strict=True
        ):
            image = enhance(image).enhance(float(factor))
    if grey < spec.grayscale:
        image = image.convert("L").convert("RGB")
    if blur < spec.blur:
        image = image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))
    return image


def _moved(image: "Image", shift: tuple[float, float], zoom: float, angle: float) -> "Image":
    from PIL import Image

    width, height = image.size
    corners = [image.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]
    fill = tuple(int(value) for value in np.median(np.array(corners), axis=0))
    # From a place in the result to one in the picture: about the middle, turned back and scaled back.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    middle_x, middle_y = width / 2, height / 2
    from_x, from_y = middle_x + shift[0], middle_y + shift[1]
    matrix = (
        cos,
        sin,
        middle_x - cos * from_x - sin * from_y,
        -sin,
        cos,
        middle_y + sin * from_x - cos * from_y,
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def stretched(frames: NDArray[np.int64], spec: AudioAugmentSpec, chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many frames each sound has after its change of speed and the silence before it.

    Args:
        frames: (n,) of the sounds as they are.
        spec: how much.
        chance: (n, 2) from 0 to 1: what decides speed and silence.

    Returns:
        (n,) frames, at least 8.
    """
    faster = speeds(spec, chance[:, 0])
    silence = np.floor(chance[:, 1] * spec.shift * 100).astype(np.int64)
    longer: NDArray[np.int64] = np.ceil(frames / faster).astype(np.int64) + silence
    return np.maximum(longer, FRAMES_PER_TOKEN)


def speeds(spec: AudioAugmentSpec, chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of speed that `chance` decides."""
    return np.exp((2 * chance - 1) * math.log1p(spec.speed))


def change_speed(samples: Floats, spec: AudioAugmentSpec, chance: NDArray[np.float64], frames: int) -> Floats:
    """The sound faster or slower, behind some silence, as long as `frames` says.

    The change of speed interpolates linearly: above 6 kHz that costs some treble, which a change of speed
    does too.

    Args:
        samples: (S,) at 16 kHz.
        spec: how much.
        chance: (2,), see `stretched`.
        frames: what `stretched` gave for it.
    """
    factor = float(speeds(spec, chance[:1])[0])
    count = max(1, round(len(samples) / factor))
    if spec.speed:
        places = np.arange(count) * (len(samples) / count)
        samples = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    silence = math.floor(float(chance[1]) * spec.shift * 100) * HOP
    return fitted(np.concatenate([np.zeros(silence, np.float32), samples]), frames)


def fitted(samples: Floats, frames: int) -> Floats:
    """The sound cut or filled up with silence to give exactly `frames` mel frames."""
    most = frames * HOP
    least = 1 if frames <= FRAMES_PER_TOKEN else most - HOP + 1
    if len(samples) < least:
        return np.pad(samples, (0, least - len(samples)))
    return samples[:most]


def add_noise(samples: Floats, spec: AudioAugmentSpec, draw: np.random.Generator) -> Floats:
    """The sound with white noise, with the probability of the recipe."""
    wanted, decibels = draw.uniform(), draw.uniform(10, 40)
    if wanted >= spec.noise:
        return samples
    level = math.sqrt(float(np.mean(np.square(samples, dtype=np.float64)))) * 10 ** (-decibels / 20)
    noise = draw.standard_normal(len(samples), dtype=np.float32)
    return samples + np.float32(level) * noise


def mask_mel(mel: Floats, spec: AudioAugmentSpec, draw: np.random.Generator) -> Floats:
    """(F, M) features with stretches of time and bands of frequency set to the least of them."""
    mel = mel.copy()
    floor = mel.min()
    frames, bins = mel.shape
    for _ in range(spec.time_masks):
        width = draw.integers(0, frames // 10 + 1)
        start = draw.integers(0, frames - width + 1)
        mel[start : start + width] = floor
    for _ in range(spec.frequency_masks):
        width = draw.integers(0, bins // 8 + 1)
        start = draw.integers(0, bins - width + 1)
        mel[:, start : start + width] = floor
    return mel
