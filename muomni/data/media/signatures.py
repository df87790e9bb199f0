"""What a file is, by its first bytes or its name; nothing is decoded."""

from pathlib import PurePath
from typing import Literal, NamedTuple

Kind = Literal["image", "audio", "video", "other"]
# So many bytes are enough.
HEAD_BYTES = 512


class Signature(NamedTuple):
    """A format that was recognised; `kind` is what a file of it usually holds."""

    kind: Kind
    name: str


_READ = {"PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP", "WAV", "RF64", "W64", "FLAC", "OGG", "AIFF", "AU", "CAF", "MP3"}
_READ |= {"MP4 or MOV", "MOV", "AVI", "WebM or Matroska", "FLV", "MPEG", "MPEG-TS"}
# (offset, bytes) that all have to match. The first that does is taken.
_SIGNATURES: tuple[tuple[Signature, tuple[tuple[int, bytes], ...]], ...] = (
    (Signature("image", "PNG"), ((0, b"\x89PNG\r\n\x1a\n"),)),
    (Signature("image", "JPEG"), ((0, b"\xff\xd8\xff"),)),
    (Signature("image", "GIF"), ((0, b"GIF8"),)),
    (Signature("image", "WebP"), ((0, b"RIFF"), (8, b"WEBP"))),
    (Signature("image", "TIFF"), ((0, b"II*\0"),)),
    (Signature("image", "TIFF"), ((0, b"MM\0*"),)),
    (Signature("image", "BigTIFF"), ((0, b"II+\0"),)),
    (Signature("image", "BigTIFF"), ((0, b"MM\0+"),)),
    (Signature("image", "AVIF"), ((4, b"ftypavi"),)),
    *((Signature("image", "HEIC"), ((4, b"ftyp" + brand),)) for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (Signature("image", "JPEG 2000"), ((4, b"jP  "),)),
    (Signature("image", "JPEG XL"), ((4, b"JXL "),)),
    (Signature("image", "JPEG XL"), ((0, b"\xff\x0a"),)),
    (Signature("image", "PSD"), ((0, b"8BPS"),)),
    (Signature("image", "BMP"), ((0, b"BM"), (6, b"\0\0\0\0"))),
    (Signature("audio", "WAV"), ((0, b"RIFF"), (8, b"WAVE"))),
    (Signature("audio", "WAV"), ((0, b"RIFX"), (8, b"WAVE"))),
    (Signature("audio", "RF64"), ((0, b"RF64"), (8, b"WAVE"))),
    (Signature("audio", "W64"), ((0, b"riff\x2e\x91\xcf\x11"),)),
    (Signature("audio", "FLAC"), ((0, b"fLaC"),)),
    (Signature("audio", "OGG"), ((0, b"OggS"),)),
    (Signature("audio", "AIFF"), ((0, b"FORM"), (8, b"AIF"))),
    (Signature("audio", "AU"), ((0, b".snd"),)),
    (Signature("audio", "CAF"), ((0, b"caff"),)),
    (Signature("audio", "MP3"), ((0, b"ID3"),)),
    (Signature("audio", "M4A"), ((4, b"ftypM4"),)),
    (Signature("audio", "AMR"), ((0, b"#!AMR"),)),
    (Signature("audio", "AAC"), ((0, b"\xff\xf1"),)),
    (Signature("audio", "AAC"), ((0, b"\xff\xf9"),)),
    *((Signature("audio", "MP3"), ((0, bytes((0xFF, second))),)) for second in (0xFA, 0xFB, 0xF2, 0xF3, 0xE2, 0xE3)),
    (Signature("video", "MP4 or MOV"), ((4, b"ftyp"),)),
    (Signature("video", "MOV"), ((4, b"moov"),)),
    (Signature("video", "AVI"), ((0, b"RIFF"), (8, b"AVI "))),
    (Signature("video", "WebM or Matroska"), ((0, b"\x1aE\xdf\xa3"),)),
    (Signature("video", "FLV"), ((0, b"FLV\1"),)),
    (Signature("video", "MPEG"), ((0, b"\0\0\1\xba"),)),
    (Signature("video", "MPEG-TS"), ((0, b"G"), (188, b"G"))),
    (Signature("audio", "WMA or WMV"), ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    (Signature("other", "PDF"), ((0, b"%PDF"),)),
    (Signature("other", "a zip file"), ((0, b"PK\x03\x04"),)),
    (Signature("other", "a gzip file"), ((0, b"\x1f\x8b"),)),
    (Signature("other", "Parquet"), ((0, b"PAR1"),)),
)
_SOUNDS = (".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".m4a", ".aac")
_MORE_SOUNDS = (".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".wma", ".amr", ".weba")
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".wmv", ".ogv")


def signature_of(head: bytes) -> Signature | None:
    """The format of content that begins with `head` (`HEAD_BYTES` or less); None where it is not known."""
    for signature, parts in _SIGNATURES:
        if all(head.startswith(mark, offset) for offset, mark in parts):
            return signature
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:4].lower() == b"<svg" or (start[:5].lower() == b"<?xml" and b"<svg" in start):
        return Signature("other", "SVG")
    if start and b"\0" not in head and (head.isascii() or _is_text(head)):
        return Signature("other", "text")
    return None


def kind_of_path(path: str | PurePath) -> Kind | None:
    """What a file of this name usually holds; None for pictures and for names that are not known."""
    suffix = PurePath(path).suffix.lower()
    if suffix in _SOUNDS or suffix in _MORE_SOUNDS:
        return "audio"
    return "video" if suffix in _VIDEOS else None


def looks_like(head: bytes, wanted: Kind) -> str:
    """What else the content may be, and how to convert it, for the end of an error; empty where nothing is known.

    Args:
        head: the first bytes.
        wanted: what it should have been.
    """
    signature = signature_of(head)
    if signature is None:
        return ""
    kind, name = signature
    if kind == wanted and name in _READ:
        return f"; it looks like a broken {name}"
    if wanted == "audio" and kind in ("audio", "video"):
        return f"; it looks like {name}: convert its sound to WAV or FLAC, for example: ffmpeg -i FILE sound.flac"
    if wanted == "image" and (kind == "image" or name in ("PDF", "SVG")):
        return f"; it looks like {name}: convert it to PNG or JPEG"
    noun = {"image": "a picture", "audio": "a sound", "video": "a video"}.get(kind)
    return f"; it looks like {name if noun is None else f'{noun} ({name})'}"


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8, of which the last character may be cut, without control characters."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or not error.start:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
