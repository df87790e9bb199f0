"""Frames of video files: which are taken, and what is said of files that are none."""

import builtins
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.data.media.video import video_frames
from muomni.errors import MediaError

av = pytest.importorskip("av", reason='PyAV is missing: pip install "muomni[video]"')


def video(frames: int = 20, rate: int = 10, size: tuple[int, int] = (64, 48), form: str = "mp4") -> bytes:
    """Frames of noise around a grey that grows by 10 each; the index of an MP4 is at its beginning."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{form}"
        with av.open(path, "w", format=form, options={"movflags": "faststart"} if form == "mp4" else {}) as file:
            write(file, draw, frames, rate, size)
        return path.read_bytes()


def write(file: Any, draw: np.random.Generator, frames: int, rate: int, size: tuple[int, int]) -> None:
    stream = file.add_stream("mpeg4", rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    for number in range(frames):
        pixels = 10 * number % 250 + draw.integers(-5, 6, (size[1], size[0], 3))
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")))
    file.mux(stream.encode())


def sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def part(content: bytes) -> bytes:
    return content[: 2 * len(content) // 3]


def greys(content: bytes, **options: Any) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in video_frames(content, **options)]


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_frames_are_evenly_in_time(form: str) -> None:
    content = video(form=form)
    frames = video_frames(content, rate=2.5)
    assert {frame.size for frame in frames} == {(64, 48)} and {frame.mode for frame in frames} == {"RGB"}
    assert greys(content, rate=2.5) == pytest.approx([0, 40, 80, 120, 160], abs=4)
    assert len(greys(content)) == 2
    assert len(greys(content, rate=100)) == 20  # there are no more
    assert greys(content, rate=5, max_frames=3) == pytest.approx([0, 20, 40], abs=4)


def test_large_frames_are_made_smaller() -> None:
    (frame,) = video_frames(video(1, size=(2048, 1024)))
    assert frame.size == (1448, 724)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (video(60)[:3000], "is no whole video|is cut off"),
        (part(video(60)), r"is cut off: of 6.0 s of video \d\.\d s are there"),
        (part(video(60, form="matroska")), "is cut off: of 6.0 s"),
        (b"this is a text, and no video at all" * 9, "it looks like text"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "it looks like text"),
        (bytes(1000), "is no whole video"),
        (b"", "is empty"),
        (sound(), "holds no video"),
    ],
)
def test_what_is_no_whole_video_says_so(content: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        video_frames(content, rate=20, max_frames=100)


def test_too_large_frames_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.media.video.MAX_PIXELS", 64 * 47)
    with pytest.raises(MediaError, match="64 × 48 pixels, too large"):
        video_frames(video(1))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4: no such file"):
        video_frames(tmp_path / "none.mp4")
    for wrong in ({"rate": 0}, {"max_frames": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            video_frames(b"", **wrong)
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MediaError, match=r"needs PyAV: pip install \"muomni\[video\]\""):
        video_frames(b"")


def test_a_video_in_a_batch_is_its_frames(small_tokenizer: Any, tmp_path: Any) -> None:
    """In every form it may have; one that is broken leaves the others answered."""
    from muomni import MuOmni

    model = MuOmni.from_config("nano", vision=True, tokenizer=small_tokenizer, device="cpu", seed=0)
    (tmp_path / "a.mp4").write_bytes(content := video(30))
    (tmp_path / "cut.mp4").write_bytes(part(content))
    shown = [content, tmp_path / "a.mp4", str(tmp_path / "a.mp4"), video_frames(content)]
    parts = [{"type": "video", "video": one} for one in shown]
    parts.insert(2, {"type": "video", "video": str(tmp_path / "cut.mp4")})
    replies = model.chat_batch([[one, "What?"] for one in parts], on_error="reply", temperature=0, max_new_tokens=4)
    assert "cut.mp4: is cut off" in str(replies.pop(2).error)
    assert len({reply.tokens for reply in replies}) == 1 and replies[0].timing.prompt_tokens > 3 * 16
    assert model.runtime.media.encoded == 3
    with pytest.raises(MediaError, match=r"prompt 2 of 2: .*cut\.mp4: is cut off"):
        model.chat_batch(["Hello", [parts[2]]])
