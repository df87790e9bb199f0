"""Whatever a file, an archive or a name holds: a result or the one error for media, which names it."""

import contextlib
import io
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.data.media.archives import open_archive
from muomni.data.media.audio import audio_seconds, load_audio
from muomni.data.media.image import load_image, picture_size
from muomni.data.media.media_ref import MediaRef, open_bytes
from muomni.data.media.video import video_frames
from muomni.errors import MediaError
from tests.data.media import containers

av = pytest.importorskip("av", reason='PyAV is missing: pip install "muomni[video]"')
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SOUND = (np.sin(np.arange(4000) / 5) / 2).astype(np.float32)


def picture(form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, form, **options)
    return out.getvalue()


def sound(form: str, samples: Any = SOUND) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, 16_000, format=form)
    return out.getvalue()


@cache
def video(form: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video")
        with av.open(path, "w", format=form) as file:
            file.metadata["title"] = "TITLE"
            stream = file.add_stream("flv1" if form == "flv" else "mpeg4", rate=5)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            for _ in range(10):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(NOISE, format="rgb24")))
            file.mux(stream.encode())
        return path.read_bytes()


def archive(form: str, names: tuple[str, ...] = ("a.png", "b/c.wav")) -> bytes:
    out = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(out, "w") as file:
            for number, name in enumerate(names):
                file.writestr(name, bytes(500), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2])
    else:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 500
                tar.addfile(info, io.BytesIO(bytes(500)))
    return out.getvalue()


def read_picture(path: Path) -> None:
    picture_size(path)
    load_image(path)


def read_sound(path: Path) -> None:
    audio_seconds(path)
    load_audio(path)


def read_archive(path: Path) -> None:
    for name in list(open_archive(str(path)).names):
        with contextlib.suppress(MediaError):
            open_bytes(MediaRef("image", str(path), name))


PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")
CONTAINERS = ("webm", "m4a", "aac", "ts")
VIDEOS = ("mp4", "matroska", "avi", "mpegts", "flv")
SURFACE: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    **{form: (partial(picture, form), read_picture) for form in PICTURES},
    **{form: (partial(sound, form), read_sound) for form in SOUNDS},
    **{form: (partial(containers.sound, form, 0.2), read_sound) for form in CONTAINERS},
    **{form: (partial(video, form), video_frames) for form in VIDEOS},
    **{form: (partial(archive, form), read_archive) for form in ("zip", "tar")},
}


@pytest.mark.parametrize("form", SURFACE)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_nothing_but_our_error(form: str, changes: list[tuple[float, bytes]], length: float, joined: bool) -> None:
    make, read = SURFACE[form]
    whole = make()
    content = bytearray(whole)
    for place, new in changes:
        # Half of the changes lie in the first 200 bytes, where headers are.
        at = int(place * 2 * min(200, len(content))) if place < 0.5 else int(place * (len(content) - 1))
        content[at : at + len(new)] = new
    content = content[: int(length * len(content))] + (whole if joined else b"")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "file")
        path.write_bytes(content)
        message = str(path)
        try:
            read(path)
        except MediaError as error:
            message = str(error)
        assert str(path) in message and "\n" not in message


def test_an_archive_that_lies_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").write_bytes(archive("zip", ("a.png", "b.png")).replace(b"a.png", b"\0\0\0\0\0"))
    assert "b.png" in open_archive(str(tmp_path / "empty.zip")).names
    content = bytearray(archive("zip", ("a.png",)))
    end = content.index(b"PK\5\6")
    content[end + 16 : end + 20] = struct.pack("<I", 1 << 20)  # members would begin before the file does
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.zip: "):
        open_bytes(MediaRef("image", str(tmp_path / "a.zip"), "a.png"))


def test_links_in_a_tar_are_what_they_point_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x/a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "x/a.png"),
            ("y/soft.png", tarfile.SYMTYPE, "../x/a.png"),
            ("away.png", tarfile.SYMTYPE, "/etc/hostname"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    path = str(tmp_path / "a.tar")
    assert (
        open_bytes(MediaRef("image", path, "hard.png")) == b"abc" == open_bytes(MediaRef("image", path, "y/soft.png"))
    )
    with pytest.raises(MediaError, match=r"away\.png: is not in this archive"):
        open_bytes(MediaRef("image", path, "away.png"))


def png_with(kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk behind its pixels."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    whole = picture("PNG")
    end = whole.index(b"IEND") - 4
    return whole[:end] + chunk + whole[end:]


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_wherever_the_format_keeps_it(orientation: int) -> None:
    jpeg = picture("PNG", exif=exif(orientation))
    expected = np.asarray(load_image(jpeg))
    raw = exif(orientation)
    profile = f"\nexif\n{len(raw)}\n{raw.hex()}\n".encode()
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    for content in (
        png_with(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        picture("TIFF", exif=exif(orientation)),
    ):
        turned = load_image(content)
        assert picture_size(content) == turned.size == picture_size(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(np.asarray(turned), expected)
        np.testing.assert_array_equal(np.asarray(load_image(Image.open(io.BytesIO(content)))), expected)


# Rows of a display matrix, and where the picture's first corner goes.
MATRICES = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_of_a_video_stand_upright(matrix: tuple[int, ...]) -> None:
    content = bytearray(video("mp4"))
    a, b, c, d = (value << 16 for value in matrix)
    place = content.index(b"tkhd") + 44
    plain = np.asarray(video_frames(bytes(content))[0])
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (frame, *_) = video_frames(bytes(content))
    np.testing.assert_array_equal(np.asarray(frame), MATRICES[matrix](plain))


def test_titles_codecs_and_ends_of_videos() -> None:
    content = video("avi")
    assert len(video_frames(content.replace(b"TITLE", b"T\xfcTLE"), rate=5)) == 10
    with pytest.raises(MediaError, match="codec that is not known"):
        video_frames(content.replace(b"FMP4", b"QQZZ"))
    gif = picture("GIF", save_all=True, append_images=[Image.new("RGB", (32, 24), c) for c in ("red", "blue")])
    for whole in (content, gif, video("mpegts")):
        assert video_frames(whole, rate=100)
        with pytest.raises(MediaError, match="cut off|no whole video"):
            video_frames(whole[: len(whole) * 2 // 3 + 1], rate=100)


@pytest.mark.parametrize("form", ["OGG", "MP3", "WAV"])
def test_joined_sounds_are_read_to_the_end(form: str, tmp_path: Path) -> None:
    one, other = sound(form, np.tile(SOUND, 4)), sound(form, np.tile(SOUND, 2))
    (tmp_path / "joined").write_bytes(one + other + one)
    for source in (one + other + one, tmp_path / "joined"):
        samples = load_audio(source)
        assert audio_seconds(source) == 2.5 and len(samples) == 40_000
        np.testing.assert_array_equal(samples, np.concatenate([load_audio(one), load_audio(other), load_audio(one)]))
        with pytest.raises(MediaError, match=r"lasts 2\.5 s, longer than the 2 s"):
            load_audio(source, max_seconds=2)


def test_joined_flac_is_told() -> None:
    assert len(load_audio(sound("FLAC"))) == 4000
    with pytest.raises(MediaError, match="several FLAC files joined"):
        load_audio(sound("FLAC") + sound("FLAC"))


def test_mp3_in_wav_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    mp3 = sound("MP3", np.tile(SOUND, 8))
    extra = struct.pack("<HHIHHH", 12, 1, 0, 1152, 1, 0)
    head = struct.pack("<HHIIHH", 0x55, 1, 16_000, 0, 576, 0) + extra
    fact = b"fact" + struct.pack("<II", 4, 33_000)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + fact + b"data" + struct.pack("<I", len(mp3)) + mp3
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert abs(len(load_audio(path)) - 32_000) < 4 * 1152


def test_whole_numbers_of_64_bits_have_no_scale() -> None:
    with pytest.raises(MediaError, match="int64, whose full scale is not known"):
        load_audio((np.arange(1000), 16_000))


@pytest.mark.parametrize(
    ("head", "load", "words"),
    [
        (b"\x1aE\xdf\xa3", load_audio, "WebM or Matroska: convert its sound .* ffmpeg"),
        (b"\0\0\0 ftypM4A ", load_audio, "M4A: convert"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", load_audio, "WMA or WMV: convert"),
        (b"\0\0\0 ftypheic", load_image, "HEIC: convert it to PNG or JPEG"),
        (b"%PDF-1.7 \xff\xff", load_image, "PDF: convert"),
        (b"%PDF-1.7 a text", load_audio, "looks like PDF"),
        (b"<svg xmlns='x'>", load_image, "SVG: convert"),
        (b"RIFF\0\0\0\0WAVEfmt ", load_image, r"looks like a sound \(WAV\)"),
        (b"RIFF\0\0\0\0WAVEfmt ", load_audio, "looks like a broken WAV"),
        ("ein Text mit Umlauten: äöü".encode(), load_image, "looks like text"),
    ],
)
def test_what_is_not_read_is_named(head: bytes, load: Callable[[bytes], Any], words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load(head + bytes(100) if b"\0" in head or b"\xff" in head or b"\x1a" in head else head)


def test_names_cannot_break_a_message() -> None:
    for name, words in (
        ("a\nb.png", r"a\\nb\.png"),
        ("\udcff.png", r"\\udcff\.png"),
        ("x" * 9999, "xxx…xxx"),
        ("~$a", "~"),
    ):
        with pytest.raises(MediaError, match=words) as raised:
            load_image(MediaRef("image", name))
        assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    """Each passes over all pixels: half a megabyte could take an hour."""
    jpeg = picture("JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert load_image(jpeg[:-2] + scan * 20 + b"\xff\xd9").size == (32, 24)
    for read in (load_image, picture_size):
        with pytest.raises(MediaError, match="scans"):
            read(jpeg[:-2] + scan * 2000 + b"\xff\xd9")


@pytest.mark.parametrize("form", ["WAV", "OGG"])
def test_a_file_of_very_many_sounds_is_refused(form: str) -> None:
    short = sound(form, SOUND[:1])
    assert audio_seconds(short * 10) > 0
    for read in (load_audio, audio_seconds):
        with pytest.raises(MediaError, match="sounds joined"):
            read(short * 1200)
