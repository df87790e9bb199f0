"""Broken, huge and odd pictures and sounds, one by one, and archives of them."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.config import VisionConfig
from muomni.data.media.audio import audio_seconds, load_audio
from muomni.data.media.image import load_image, picture_size, to_patches, token_grid
from muomni.data.media.media_ref import MediaRef, open_bytes
from muomni.errors import MediaError
from muomni.ops.audio_frames import num_frames
from muomni.ops.log_mel import log_mel

VIT = VisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def picture(form: str = "PNG", image: Any = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(NOISE) if image is None else image).save(out, form, **options)
    return out.getvalue()


def sound(samples: Any = None, rate: int = 16_000, form: str = "WAV", **options: Any) -> bytes:
    out = io.BytesIO()
    wave = np.sin(np.arange(16_000) / 5).astype(np.float32) / 2 if samples is None else samples
    soundfile.write(out, wave, rate, format=form, **options)
    return out.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size; its pixels are a bomb of zeros."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6)))]
    body = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def wav_header(seconds: int, rate: int = 16_000) -> bytes:
    size = seconds * rate * 2
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", size + 36) + head + b"data" + struct.pack("<I", size)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (picture()[:2000], "broken or cut off"),
        (picture("JPEG")[:2000], "broken or cut off"),
        (picture("WEBP", lossless=True)[:2000], "picture"),
        (b"this is a text", "looks like text"),
        (b"", "empty"),
        (sound(), "looks like a sound"),
        (png_header(20_000, 20_000), "pixels"),
        (png_header(9_000, 9_000), "pixels"),
        (png_header(8_000, 8_000), "broken or cut off"),
        (picture("GIF", save_all=True, append_images=[Image.new("RGB", (80, 60))]), "animated"),
        (picture("WEBP", save_all=True, append_images=[Image.new("RGB", (80, 60))]), "animated"),
        (picture("PNG", save_all=True, append_images=[Image.new("RGB", (80, 60))]), "animated"),
    ],
)
def test_bad_pictures(content: bytes, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(MediaError, match=words):
            load_image(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.fromarray(NOISE).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    result = load_image(image)
    assert result.mode == "RGB" and result.size == (80, 60)
    if mode not in ("1", "CMYK"):
        assert np.abs(np.asarray(result).astype(int) - np.asarray(grey)[..., None]).max() <= 2


def test_transparency_is_white_and_exif_turns() -> None:
    assert load_image(picture(image=Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        turned = picture(form, exif=exif)
        assert picture_size(turned) == load_image(turned).size == (60, 80)


def test_a_large_jpeg_is_decoded_smaller() -> None:
    large = picture("JPEG", Image.effect_noise((4000, 3000), 50).convert("RGB"))
    assert load_image(large).size == (4000, 3000)
    small = load_image(large, VIT)
    assert 400 <= small.width <= 1000


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_grid(width: int, height: int) -> None:
    rows, columns = token_grid((width, height), VIT)
    assert VIT.min_tokens <= rows * columns <= VIT.max_tokens
    turned = token_grid((height, width), VIT)
    assert turned[0] * turned[1] == rows * columns


def test_patches_are_where_they_were() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    patches, (rows, columns) = to_patches(image, VIT)
    assert patches.shape == (rows * columns, 3 * 256) and (rows, columns) == (8, 8)
    pixels = np.asarray(image).astype(np.float32) / 127.5 - 1
    expected = pixels[16:32, 32:48].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(patches[1 * 8 + 2], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (sound(np.zeros(0, np.float32)), "no samples"),
        (b"", "empty"),
        (b"this is a text, not a sound", "looks like text"),
        (picture(), "looks like a picture"),
        (sound()[:9000], "cut off"),
        (sound(form="FLAC")[:6000], "FLAC|cut off"),
        (half(sound(np.tile(NOISE.ravel() / 512, 6), form="OGG")), "cut off|whole"),
        (half(sound(np.tile(NOISE.ravel() / 512, 6), form="MP3")), "cut off"),
        (sound(np.array([0.0, np.nan, 1.0]), subtype="FLOAT"), "NaN"),
        (wav_header(8 * 3600), "cut off"),
    ],
    # Some contents hold the time of writing, which would be in the tests' names.
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_sounds(content: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load_audio(content)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_wav(subtype: str, rate: int) -> None:
    wave = np.sin(np.arange(rate) * 440 * 2 * np.pi / rate) / 2
    content = sound(wave, rate, subtype=subtype)
    samples = load_audio(content)
    expected = np.sin(np.arange(16_000) * 440 * 2 * np.pi / 16_000) / 2
    assert samples.dtype == np.float32 and len(samples) == 16_000 and audio_seconds(content) == 1.0
    assert np.abs(samples - expected)[500:-500].max() < (0.02 if subtype == "PCM_U8" else 0.002)


def test_channels_one_sample_and_arrays() -> None:
    surround = np.zeros((1600, 6), np.float32)
    surround[:, 2] = 0.5
    assert np.allclose(load_audio(sound(surround)), 0.5 * 0.7071 / 2.4142, atol=1e-3)
    one = load_audio(sound(np.ones(1, np.float32) / 2, 48_000))
    assert len(one) == 1 and log_mel(torch.from_numpy(one)).shape == (8, 80) == (num_frames(1), 80)
    assert np.array_equal(load_audio((np.full((2, 100), 16_384, np.int16), 16_000)), np.full(100, 0.5, np.float32))
    with pytest.raises(MediaError, match="longer than"):
        load_audio((np.zeros(16_000), 16_000), max_seconds=0.5)
    streamed = bytearray(sound())
    streamed[40:44] = b"\xff\xff\xff\xff"
    assert len(load_audio(bytes(streamed))) == 16_000


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_hours_are_refused_from_the_header_in_little_memory(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"long.{form.lower()}"
    with soundfile.SoundFile(path, "w", 8000, 1, format=form) as file:
        # Small blocks: libsndfile's OGG encoder crashes on very large ones.
        for _ in range(8 * 3600 if form in ("WAV", "FLAC") else 900):
            file.write(np.zeros(8000, np.int16))
    code = (
        "import resource, sys\nfrom muomni.data.media.audio import load_audio\nfrom muomni.errors import MediaError\n"
        "import soundfile, soxr\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    load_audio(sys.argv[1])\nexcept MediaError as error:\n"
        "    assert 'longer than' in str(error), error\n"
        "else:\n    raise AssertionError\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[-1]) < 20_000  # KB


def ogg_pages(content: bytes) -> list[bytes]:
    return [b"OggS" + page for page in content.split(b"OggS")[1:]]


def test_a_recorded_ogg_without_its_last_flag_is_whole() -> None:
    content = sound(np.tile(NOISE.ravel() / 512, 6).astype(np.float32), form="OGG")
    pages = ogg_pages(content)
    page = bytearray(pages[-1])
    assert page[5] & 4
    page[5] &= ~4
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", crc)
    recorded = b"".join(pages[:-1]) + page
    np.testing.assert_array_equal(load_audio(recorded), load_audio(content))
    for cut in (recorded[:-1], content[:-20], b"".join(pages[:-1]) + page[:20]):
        with pytest.raises(MediaError, match="cut off in the midst of a page"):
            load_audio(cut)
    shorter = load_audio(b"".join(pages[:-1]))  # cut between two pages: cannot be told
    assert 0 < len(shorter) < len(load_audio(content))


LARGE: dict[str, Any] = {
    "RGB": NOISE,
    "RGBA": np.random.default_rng(1).integers(0, 256, (60, 80, 4), dtype=np.uint8),
    "I;16": NOISE[..., 0].astype(np.uint16) * 257,
    "P": NOISE[..., 0],
}


@pytest.mark.parametrize("mode", LARGE)
def test_large_pictures_in_stripes_are_the_same_and_wait_their_turn(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(LARGE[mode]) if mode != "P" else Image.fromarray(NOISE).quantize(50)
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    content = picture(image=image, **options)
    expected = load_image(content)
    small = VIT.replace(patch_size=1, min_tokens=16, max_tokens=20, pixel_shuffle_factor=1)
    assert load_image(content, small).tobytes() == expected.tobytes()  # as it is no large one
    monkeypatch.setattr("muomni.data.media.image.LARGE_PIXELS", 60 * 80 - 1)
    taken: list[str] = []

    @contextlib.contextmanager
    def turn() -> Any:
        taken.append(mode)
        yield

    assert load_image(content, turn=turn()).tobytes() == expected.tobytes() and taken == [mode]
    reduced = load_image(content, small, turn())
    assert reduced.size == (16, 12) and taken == [mode] * 2
    assert reduced.tobytes() == expected.reduce(5).tobytes()
    patches, _ = to_patches(expected, small)
    np.testing.assert_allclose(to_patches(reduced, small)[0], patches, atol=0.02)


def test_large_pictures_and_bombs_take_bounded_memory(tmp_path: Path) -> None:
    """16 million pixels with transparency: 64 MB decoded, once for three threads; a bomb next to nothing."""
    Image.new("RGBA", (4096, 4096), (200, 0, 0, 128)).save(tmp_path / "large.png", compress_level=1)
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    code = (
        "import resource, sys, threading\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from muomni.config.model import encoder_configs\nfrom muomni.data.media.image import load_image\n"
        "from muomni.errors import MediaError\nimport PIL.Image, PIL.PngImagePlugin\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "vision, turn, before = encoder_configs('tiny')[0], threading.Lock(), peak()\n"
        "try:\n    load_image(sys.argv[2])\nexcept MediaError:\n    print(peak() - before)\n"
        "with ThreadPoolExecutor(3) as pool:\n"
        "    jobs = [pool.submit(load_image, sys.argv[1], vision, turn) for _ in range(3)]\n"
        "assert all(job.result().size == (820, 820) for job in jobs)\nprint(peak() - before)"
    )
    files = [str(tmp_path / name) for name in ("large.png", "bomb.png")]
    run = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    bomb, large = map(int, run.stdout.split())
    assert bomb < 10_000 and large < 100_000  # KB


def test_archives(tmp_path: Path) -> None:
    content = picture()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/a.png", content)
        archive.writestr("../../evil.png", content, zipfile.ZIP_DEFLATED)
        archive.writestr("bomb.png", bytes(300 << 20), zipfile.ZIP_DEFLATED)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    ref = MediaRef("image", str(tmp_path / "a.zip"), "x/a.png")
    assert open_bytes(ref) == content == open_bytes(MediaRef("image", ref.path, "../../evil.png"))
    assert open_bytes(MediaRef("image", str(tmp_path / "a.tar"), "a.png")) == content
    assert not list(tmp_path.parent.glob("**/evil.png"))
    for member, words in (("bomb.png", "unpacks to 300 MB"), ("none.png", "not in this archive")):
        with pytest.raises(MediaError, match=words):
            open_bytes(MediaRef("image", ref.path, member))
    packed = bytearray((tmp_path / "a.zip").read_bytes())
    packed[packed.index(content) + 100] ^= 1
    (tmp_path / "a.zip").write_bytes(packed)
    with pytest.raises(MediaError, match="checksum"):
        open_bytes(ref)
    (tmp_path / "a.zip").write_text("a text instead")
    with pytest.raises(MediaError, match="no zip or tar"):
        open_bytes(ref)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="not a file"):
        open_bytes(str(tmp_path / "pipe"))


SPOILS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)))
)
def test_spoilt_pictures_give_a_picture_or_our_error(form: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(picture(form))
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(MediaError):
            assert load_image(bytes(content)).mode == "RGB"
