"""Pictures: decoding with limits, the token grid that suits one, and its patches.

P patch size, m merge (m × m patches make a token), R and C rows and columns of tokens.
"""

import io
import math
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muomni.config.encoders import VisionEncoderConfig
from muomni.data.media.media_ref import Source, name_of, open_bytes
from muomni.data.media.parsing import parsing
from muomni.data.media.signatures import HEAD_BYTES, looks_like
from muomni.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

Picture = "Source | Image"
# A picture of this many pixels takes 256 MB decoded; the header tells before anything is decoded.
MAX_PIXELS = 64 << 20
_MOST_SCANS = 100
# Above this a picture is decoded in turn and converted in stripes.
LARGE_PIXELS = 4 << 20
# JPEG opens MPO too.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_NAMES = "PNG, JPEG, WebP, GIF, BMP or TIFF"

_ORIENTATION = 0x0112
# Chunks of a PNG that can say how the picture is turned.
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_MOST_CHUNKS = 100_000


def load_image(
    source: "Source | Image", fit: VisionEncoderConfig | None = None, turn: AbstractContextManager[object] | None = None
) -> "Image":
    """The picture as RGB: upright as its EXIF data says, transparency over white, 16-bit grey as 8-bit.

    Args:
        source: a path, bytes of PNG, JPEG, WebP, GIF, BMP or TIFF, a reference, or a PIL picture.
        fit: for this encoder; a JPEG much larger than what the encoder takes is then decoded at 1/2, 1/4 or
            1/8 of its size (never at less than twice what the encoder takes), which is faster by as much, and any
            other picture of more than `LARGE_PIXELS` is made smaller, to at least three times that. Its token grid
            stays that of the whole picture.
        turn: a lock, held while a picture of more than `LARGE_PIXELS` is decoded: threads that share it decode one
            at a time. A decoded picture takes 4 bytes for each pixel; made smaller it takes little more than that,
            else as much again.

    Raises:
        MediaError: naming the source: missing, no picture, broken, truncated, animated, or more than
            `MAX_PIXELS`, which is found from the header.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with _errors("the given picture"):
            _check(source, "the given picture")
            return _rgb(source, "the given picture", _orientation_of(source))
    name = name_of(source)
    content = open_bytes(source)
    picture, size = _decoded(content, name, fit, turn)
    if fit is not None and token_grid(picture.size, fit) != token_grid(size, fit):
        # Decoded at a part of its size its sides were rounded, and with them its shape.
        picture, _ = _decoded(content, name, None, turn)
    return picture


def _decoded(
    content: bytes, name: str, fit: VisionEncoderConfig | None, turn: AbstractContextManager[object] | None
) -> "tuple[Image, tuple[int, int]]":
    """The picture, see `load_image`, and the width and height that it has at its full size."""
    with _opened(content, name) as image:
        orientation = _orientation(image)
        size = _turned(image.size, orientation)
        factor = 1
        if fit is not None:
            rows, columns = token_grid(size, fit)
            side = fit.pixel_shuffle_factor * fit.patch_size
            width, height = _turned((columns * side, rows * side), orientation)
            if image.format in ("JPEG", "MPO"):
                # Draft sizes have to cover both sides; larger than the picture means: as it is.
                image.draft(image.mode, (min(2 * width, image.width), min(2 * height, image.height)))
            factor = max(1, min(image.width // (3 * width), image.height // (3 * height)))
        large = image.width * image.height > LARGE_PIXELS
        with turn if large and turn is not None else nullcontext():
            return _rgb(image, name, orientation, factor), size


def picture_size(source: "Source | Image") -> tuple[int, int]:
    """Width and height of the picture as `load_image` gives it, in pixels; only the header is read.

    Raises:
        MediaError: as `load_image`, except for what only decoding shows.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with _errors("the given picture"):
            return _turned(source.size, _orientation_of(source))
    with _opened(open_bytes(source), name_of(source)) as image:
        return _turned(image.size, _orientation(image))


def token_grid(size: tuple[int, int], config: VisionEncoderConfig) -> tuple[int, int]:
    """Rows and columns of tokens for a picture.

    Of all grids with min_tokens to max_tokens tokens the one whose shape is nearest the picture's, and
    whose area is nearest the picture's own; a wrong shape counts twice as much as a wrong area, both in
    logarithms.

    Args:
        size: width and height in pixels.
        config: of the encoder.
    """
    width, height = size
    side = config.pixel_shuffle_factor * config.patch_size
    aspect = width / height
    area = min(max(width * height / side**2, config.min_tokens), config.max_tokens)
    best = (math.inf, 0, 0, 0)
    for rows in range(1, config.max_tokens + 1):
        least, most = -(-config.min_tokens // rows), config.max_tokens // rows
        # For given rows the cost is convex in the columns with bends at two places, so the best is beside one.
        near = {min(max(int(bend) + up, least, 1), most) for bend in (rows * aspect, area / rows) for up in (0, 1)}
        for columns in near if least <= most else ():
            shape, extent = columns / rows / aspect, rows * columns / area
            cost = 2 * abs(math.log(shape)) + abs(math.log(extent))
            best = min(best, (round(cost, 9), rows * columns, rows, columns))
    return best[2], best[3]


def to_patches(image: "Image", config: VisionEncoderConfig) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The picture resized to its token grid (bicubic) and cut into patches.

    Args:
        image: RGB, as `load_image` gives it.
        config: of the encoder.

    Returns:
        (R·m·C·m, 3·P·P) float32 from −1 to 1: patches row by row, inside a patch channel, row, column;
        and (R·m, C·m), the rows and columns of patches.
    """
    from PIL import Image

    P = config.patch_size
    rows, columns = (count * config.pixel_shuffle_factor for count in token_grid(image.size, config))
    resized = image.resize((columns * P, rows * P), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(resized).reshape(rows, P, columns, P, 3).transpose(0, 2, 4, 1, 3)
    patches = pixels.reshape(rows * columns, 3 * P * P).astype(np.float32)
    patches *= np.float32(1 / 127.5)
    patches -= 1
    return patches, (rows, columns)


@contextmanager
def _opened(content: bytes, name: str) -> "Iterator[Image]":
    """The picture with its header read and checked."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise MediaError(f"{name}: is empty")
    # Each scan of a JPEG passes over the whole picture, and takes some bytes only. Metadata may look like one.
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MOST_SCANS + (len(content) >> 16):
        raise MediaError(f"{name}: is a JPEG of more than {_MOST_SCANS} scans; save it anew")
    with _errors(name):
        try:
            image = Image.open(io.BytesIO(_with_metadata_first(content)), formats=FORMATS)
        except UnidentifiedImageError:
            why = looks_like(content[:HEAD_BYTES], "image")
            raise MediaError(f"{name}: is no picture in {_NAMES}{why}") from None
        with image:
            _check(image, name)
            yield image


@contextmanager
def _errors(name: str) -> "Iterator[None]":
    """Turns what Pillow raises on broken files into a MediaError."""
    from PIL import Image

    with parsing(name, "the picture is broken or cut off"):
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise MediaError(
                f"{name}: has more than {MAX_PIXELS >> 20} million pixels; make it smaller first"
            ) from None


def _check(image: "Image", name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: has no pixels ({width} × {height})")
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"{name}: has {width:,} × {height:,} pixels, more than {MAX_PIXELS >> 20} million; make it smaller first"
        )
    # An MPO is a JPEG with further pictures behind it, as telephones write; the first is the picture.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise MediaError(f"{name}: is animated; give its frames as a list of pictures (a video part)")


def _orientation(image: "Image") -> int:
    """How a picture of which the header is read is turned, 1 to 8 as EXIF counts; 1 is upright."""
    from PIL import Image

    # Pillow turns a TIFF by itself. Its own method for PNG decodes the pixels to look for EXIF data behind them.
    value = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _orientation_of(image: "Image") -> int:
    """The same of a given picture, whose metadata may stand behind its pixels."""
    image.load()
    return _orientation(image)


def _with_metadata_first(content: bytes) -> bytes:
    """A PNG with the metadata that stands behind its pixels put before them, where reading the header finds it."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    place, pixels, behind = 8, 0, b""
    for _ in range(_MOST_CHUNKS):
        if place + 12 > len(content):
            break
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind == b"IDAT" and not pixels:
            pixels = place
        elif pixels and kind in _PNG_METADATA:
            behind += content[place : place + 12 + size]
        place += 12 + size
    return content[:pixels] + behind + content[pixels:] if behind else content


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Sides swapped where the picture lies on its side."""
    return (size[1], size[0]) if orientation >= 5 else size


def upright(image: "Image", orientation: int) -> "Image":
    """The picture turned as its orientation says, 1 to 8 as EXIF counts."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image if orientation == 1 else image.transpose(turns[orientation])


def _rgb(image: "Image", name: str, orientation: int, factor: int = 1) -> "Image":
    """The picture in RGB and upright; where it is large, `factor` times smaller."""
    from PIL import Image

    whole_numbers = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if not whole_numbers and image.mode in ("I", "F"):
        raise MediaError(f"{name}: has mode {image.mode!r}, whose range is not known; convert it to L or RGB")
    image.load()
    width, height = image.size
    if width * height <= LARGE_PIXELS:
        image = _opaque(image)
    else:
        # In stripes, so that no second picture of the full size is in memory.
        whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        rows = max(1, LARGE_PIXELS // (4 * width * factor)) * factor
        for top in range(0, height, rows):
            stripe = _opaque(image.crop((0, top, width, min(top + rows, height))))
            whole.paste(stripe.reduce(factor) if factor > 1 else stripe, (0, top // factor))
        image = whole
    return upright(image, orientation)


def _opaque(image: "Image") -> "Image":
    """A copy in RGB: transparency over white, 16-bit grey as 8-bit."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.copy() if image.mode == "RGB" else image.convert("RGB")
