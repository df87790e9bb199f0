"""Pictures and sounds that come with requests: what is too large is told from its header, and none is kept for ever."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import soundfile
from PIL import Image
from starlette.testclient import TestClient

from muomni import MuOmni
from muomni.infer.encoder_cache import EncoderCache


@pytest.fixture(scope="module")
def client(in_process: Callable[..., TestClient]) -> TestClient:
    return in_process(max_tokens=1, max_pixels=10_000)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + encoded(data)}}


def sound(data: bytes, prefix: str = "") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": prefix + encoded(data), "format": "wav"}}


def png(width: int, height: int, color: Any = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def png_head(width: int, height: int) -> bytes:
    """A picture that says it is so large, and holds next to nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def silence(seconds: float, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format=form) as written:
        for _ in range(int(seconds * 4)):
            written.write([0.0] * 2000)
    return file.getvalue()


def post(client: TestClient, *parts: dict[str, Any]) -> Any:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([picture(png_head(60_000, 60_000))], "million"),
        ([picture(png_head(2**31 - 1, 1))], "million"),
        ([picture(png(101, 100))], "pixels together"),
        ([picture(png(80, 80)), picture(png(80, 80))], "pixels together"),
        ([picture(png(80, 80)), picture(png(80, 80, "blue"))], "pixels together"),
        ([sound(silence(400))], "longer than"),
        ([sound(silence(400, "FLAC"))], "longer than"),
        ([sound(silence(400, "OGG"))], "longer than"),
        ([picture(png(2, 2))] * 17, "16 pictures and sounds"),
        ([sound(b"nothing")], "WAV, FLAC, OGG or MP3"),
        ([sound(silence(1)[:100])], "cut off"),
        ([picture(b"nothing")], "PNG, JPEG"),
        ([picture(silence(1))], "sound"),
        ([sound(png(2, 2))], "picture"),
    ],
)
def test_what_is_too_much_or_broken_is_told(client: TestClient, parts: list[dict[str, Any]], words: str) -> None:
    reply = post(client, *parts)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"], reply.text


def test_a_flac_that_hides_its_length_is_not_decoded_to_its_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    flac = bytearray(silence(1200, "FLAC"))
    flac[8 + 13 : 8 + 18] = bytes([flac[8 + 13] & 0xF0, 0, 0, 0, 0])  # STREAMINFO: total samples unknown
    read = soundfile.SoundFile.read
    frames = 0

    def counting(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal frames
        block = read(self, *args, **more)
        frames += len(block)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    reply = post(client, sound(bytes(flac)))
    assert reply.status_code == 400 and "longer than" in reply.text
    assert frames < 400 * 8000


@pytest.mark.parametrize("head", ["data:audio/wav;base64,", "data:audio/webm;codecs=opus;base64,", "data:;base64,", ""])
def test_sounds_come_as_data_urls_of_any_type(client: TestClient, head: str) -> None:
    """What a part says of its content is not trusted: its content is looked at."""
    assert post(client, sound(silence(0.5), head)).status_code == 200


def test_memory_is_flat_over_pictures_that_all_differ(
    client: TestClient, omni: MuOmni, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = EncoderCache(limit=20_000)
    monkeypatch.setattr(omni.runtime, "media", encoders)
    sizes = []
    for number in range(1000):
        assert post(client, picture(png(4, 4, (number % 256, number // 256, 0)))).status_code == 200
        sizes.append((len(encoders._kept), encoders.nbytes))
    assert encoders.encoded == 1000
    assert len(set(sizes[30:])) == 1 and 0 < sizes[-1][1] <= 20_000
