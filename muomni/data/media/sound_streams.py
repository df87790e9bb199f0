"""Sounds that stand one behind the other in a file: chained OGG, and MP3 or WAV files that were joined.

libsndfile reads the first of them and stops; here is where the others begin.
"""

import os
import re
import struct
from collections.abc import Callable
from typing import BinaryIO

from muomni.errors import MediaError

_OGG_PAGE = 27
_ID3 = 10
# Joined in one file: each is opened by itself, however short it is.
MOST_SOUNDS = 1000
# The mark of a FLAC file, and the head of its first block, which has 34 bytes and may be the last.
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def joined_sounds(file: BinaryIO, name: str) -> list[tuple[int, int]]:
    """Begin and end, in bytes, of each sound of a file; one that is not of these formats is a single sound.

    Raises:
        MediaError: an OGG file ends in the midst of a page, so it was cut off; or there are more than `MOST_SOUNDS`.
    """
    size = file.seek(0, os.SEEK_END)
    start = _read(file, 0, 16)
    begins = [0]
    if start[:4] == b"OggS":
        begins = _ogg_chain(file, size, name)
    elif start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        begins = _one_behind_the_other(file, size, _end_of_wav)
    elif start[:3] == b"ID3" or _is_mp3_frame(start):
        begins = _one_behind_the_other(file, size, _end_of_mp3)
    if len(begins) > MOST_SOUNDS:
        raise MediaError(f"{name}: holds more than {MOST_SOUNDS:,} sounds joined; convert it")
    return list(zip(begins, [*begins[1:], size], strict=True))


def check_single_flac(file: BinaryIO, name: str) -> None:
    """Refuses FLAC files that were joined: nothing says where the second begins, and it would be left out.

    Raises:
        MediaError: there are several.
    """
    file.seek(4)
    last = b""
    while block := file.read(1 << 20):
        if _FLAC.search(last + block):
            raise MediaError(f"{name}: holds several FLAC files joined; only the first would be read, so cut it up")
        last = block[-7:]


def _one_behind_the_other(file: BinaryIO, size: int, end_of: Callable[[BinaryIO, int, int], int | None]) -> list[int]:
    begins = [0]
    while len(begins) <= MOST_SOUNDS and (end := end_of(file, begins[-1], size)) is not None and end > begins[-1]:
        begins.append(end)
    return begins


def _ogg_chain(file: BinaryIO, size: int, name: str) -> list[int]:
    """A stream begins where first pages follow on others.

    The flag that marks the last page is not asked for: streams that were recorded lack it. What was cut off exactly
    between two pages, of some 4 kB each, is therefore taken for a shorter sound.
    """
    begins, place, in_stream = [0], 0, False
    while place < size and len(begins) <= MOST_SOUNDS:
        head = _read(file, place, _OGG_PAGE + 255)
        if head[:4] != b"OggS"[: len(head)]:
            break  # libsndfile looks for the next page by itself
        segments = head[26] if len(head) > 26 else 255
        first = len(head) > 5 and bool(head[5] & 2)
        if first and in_stream:
            begins.append(place)
        in_stream = not first
        length = _OGG_PAGE + segments + sum(head[_OGG_PAGE : _OGG_PAGE + segments])
        if place + length > size:
            raise MediaError(f"{name}: is cut off in the midst of a page")
        place += length
    return begins


def _end_of_wav(file: BinaryIO, begin: int, size: int) -> int | None:
    """Where another WAV follows on the one at `begin`."""
    length = struct.unpack("<I", _read(file, begin + 4, 4))[0]
    end = begin + 8 + length + length % 2
    follows = _read(file, end, 12) if end + 12 <= size else b""
    return end if follows[:4] == b"RIFF" and follows[8:] == b"WAVE" else None


def _end_of_mp3(file: BinaryIO, begin: int, size: int) -> int | None:
    """Where more MP3 follows on the length that the header (Xing, Info) of the sound at `begin` gives."""
    place = _behind_tags(file, begin)
    head = _read(file, place, 64)
    if not _is_mp3_frame(head):
        return None
    stereo, mpeg_1 = head[3] >> 6 != 3, head[1] >> 3 & 3 == 3
    tag = 4 + ((32 if stereo else 17) if mpeg_1 else (17 if stereo else 9))
    if head[tag : tag + 4] not in (b"Xing", b"Info"):
        return None
    flags = head[tag + 7]
    if not flags & 2:
        return None
    at = tag + 8 + 4 * (flags & 1)
    end = place + int(struct.unpack(">I", head[at : at + 4])[0])
    return end if place < end < size and _is_mp3_frame(_read(file, _behind_tags(file, end), 4)) else None


def _behind_tags(file: BinaryIO, place: int) -> int:
    """Where sound begins behind ID3 and APE tags."""
    for _ in range(4):
        head = _read(file, place, 32)
        if head[:3] == b"ID3" and len(head) >= _ID3:
            size = sum((byte & 127) << 7 * (3 - n) for n, byte in enumerate(head[6:10]))
            place += _ID3 + size + (_ID3 if head[5] & 16 else 0)
        elif head[:3] == b"TAG":
            place += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            place += 32 + int(struct.unpack_from("<I", head, 12)[0])
        else:
            break
    return place


def _is_mp3_frame(head: bytes) -> bool:
    """Whether a frame of layer III begins here."""
    return (
        len(head) >= 4
        and head[0] == 0xFF
        and head[1] & 0xE6 == 0xE2
        and head[1] >> 3 & 3 != 1
        and 0 < head[2] >> 4 < 15
        and head[2] >> 2 & 3 != 3
    )


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)
