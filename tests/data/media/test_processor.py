"""One processor: what a header says agrees with what is decoded, whatever form the medium comes in."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.config.model import encoder_configs
from muomni.data.media.media_ref import MediaContent, MediaRef, read_media
from muomni.data.media.processor import MediaProcessor, content_hash
from muomni.errors import MediaError, UserError


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(samples: int, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(samples) / 9) / 2, rate, format="WAV")
    return file.getvalue()


@pytest.fixture
def processor() -> MediaProcessor:
    vision, audio = encoder_configs("nano")
    return MediaProcessor(vision, audio.replace(max_seconds=2.0))


@pytest.mark.parametrize("size", [(1, 1), (500, 30), (64, 64), (30, 700)])
def test_the_header_of_a_picture_tells_its_tokens(processor: MediaProcessor, size: tuple[int, int]) -> None:
    content = png(*size)
    told = processor.size("image", content)
    assert told == processor.size_of(processor.features("image", content))
    assert told.tokens == told.rows * told.columns > 0


@pytest.mark.parametrize(("samples", "rate"), [(1, 16_000), (1280, 16_000), (1281, 16_000), (8_000, 8_000)])
def test_the_header_of_a_sound_tells_its_tokens(processor: MediaProcessor, samples: int, rate: int) -> None:
    content = wav(samples, rate)
    told = processor.size("audio", content)
    assert (
        told == processor.size("audio", content, exact=True) == processor.size_of(processor.features("audio", content))
    )


def test_what_is_too_long_or_has_no_encoder_is_told(processor: MediaProcessor) -> None:
    with pytest.raises(MediaError, match="longer than the 2 s allowed"):
        processor.size("audio", wav(40_000))
    with pytest.raises(UserError, match="no vision encoder"):
        MediaProcessor(None, None).size("image", png(8, 8))
    with pytest.raises(UserError, match="no audio encoder"):
        MediaProcessor(None, None).features("audio", wav(8))


def test_a_file_that_was_read_is_the_same_medium(processor: MediaProcessor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(40, 50))
    ref = MediaRef("image", str(path))
    content = read_media(ref)
    assert isinstance(content, MediaContent) and content_hash(content) == content_hash(ref) == content_hash(png(40, 50))
    assert processor.size("image", content) == processor.size("image", ref)
    assert read_media(ref, limit=100) == ref  # too large to be held
    broken = MediaContent(ref, b"no picture")
    with pytest.raises(MediaError, match=r"a\.png: is no picture"):
        processor.size("image", broken)
