"""Sounds of containers, as browsers and telephones record them: heard as WAV is, and bounded alike."""

import base64
import builtins
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni import MuOmni
from muomni.data.media.audio import Samples, audio_seconds, load_audio
from muomni.data.media.media_ref import MediaRef
from muomni.errors import MediaError, PromptError
from tests.data.media.containers import FORMS, av, sound


def likeness(samples: Samples) -> float:
    """The correlation with the tone, whatever delay the codec has."""
    middle = samples[3000:13_000]
    angle = 2 * np.pi * 440 * np.arange(len(middle)) / 16_000
    return float(np.hypot(middle @ np.sin(angle), middle @ np.cos(angle)) / np.linalg.norm(middle) / 5000**0.5)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_recorded_is_heard(form: str, tmp_path: Path) -> None:
    content = sound(form)
    path = tmp_path / "sound"
    path.write_bytes(content)
    samples = load_audio(content)
    assert samples.dtype == np.float32 and abs(len(samples) / 16_000 - 1) < 0.06
    assert likeness(samples) > 0.98 and 0.4 < np.abs(samples[3000:13_000]).max() < 0.9
    assert abs(audio_seconds(content) - 1) < 0.06
    for source in (path, str(path), MediaRef("audio", str(path))):
        np.testing.assert_array_equal(load_audio(source), samples)


@pytest.mark.parametrize(("form", "channels"), [("webm", 2), ("m4a", 2), ("mka", 6)])
def test_channels_are_mixed_as_those_of_a_wav(form: str, channels: int) -> None:
    share = {2: 0.5, 6: 0.5 / 2.4142}[channels]
    mono, mixed = load_audio(sound(form)), load_audio(sound(form, channels=channels))
    middle = slice(3000, 13_000)
    assert np.linalg.norm(mixed[middle]) == pytest.approx(share * np.linalg.norm(mono[middle]), rel=0.05)


def test_a_recording_without_a_length_in_its_header() -> None:
    live = sound("webm", live=True)
    assert audio_seconds(live) == pytest.approx(1.0, abs=0.03)
    np.testing.assert_array_equal(load_audio(live), load_audio(sound("webm")))
    with pytest.raises(MediaError, match=r"lasts .* s, longer than the 0\.5 s"):
        load_audio(live, max_seconds=0.5)


def test_too_long_a_sound_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.media.container_sound.ContainerSound.blocks", lambda _: pytest.fail("decoded"))
    for form in ("webm", "m4a", "mov"):
        with pytest.raises(MediaError, match=r"lasts 1\.\d s, longer than the 0\.5 s"):
            load_audio(sound(form), max_seconds=0.5)


def test_a_header_that_lies() -> None:
    content = bytearray(sound("m4a"))
    place = content.index(b"mdhd") + 20
    (length,) = struct.unpack_from(">I", content, place)
    assert 44_000 < length < 47_000
    struct.pack_into(">I", content, place, 10)
    with pytest.raises(MediaError, match=r"longer than the 0\.5 s"):
        load_audio(bytes(content), max_seconds=0.5)
    webm = sound("webm")
    assert webm.count(b"00:00:01.0") == 1
    with pytest.raises(MediaError, match="lasts 9 h 00 min, longer than the 300 s"):
        load_audio(webm.replace(b"00:00:01.0", b"09:00:01.0"))
    with pytest.raises(MediaError, match=r"cut off: of 9\.\d s of sound 1\.0 s are there"):
        load_audio(webm.replace(b"00:00:01.0", b"00:00:09.0"))
    with pytest.raises(MediaError, match=r"longer than the 0\.5 s"):
        load_audio(webm.replace(b"00:00:01.0", b"00:00:00.1"), max_seconds=0.5)


def test_a_header_that_asks_for_all_memory() -> None:
    content = bytearray(sound("m4a"))
    content[content.index(b"stts") + 8] = 0xE5  # entries of the table of times
    for read in (load_audio, audio_seconds):
        with pytest.raises(MediaError, match="asks for more memory than there is"):
            read(bytes(content))


def test_a_sound_that_was_cut_off() -> None:
    for form in ("webm", "mka", "m4a"):
        content = sound(form)
        with pytest.raises(MediaError, match="is cut off|no whole sound"):
            load_audio(content[: len(content) // 2])


def test_packets_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.media.container_sound._MOST_PACKETS", 10)
    assert audio_seconds(sound("aac")) < 0.3


def test_blocks_of_single_samples_are_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.data.media.container_sound._FIRST_BLOCKS", 500)
    with av.open(out := io.BytesIO(), "w", format="matroska") as file:
        stream = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        stream.codec_context.open()
        for time in range(1000):
            packet = av.Packet(b"\1\0")
            packet.stream, packet.pts, packet.dts = stream, time, time
            file.mux(packet)
    with pytest.raises(MediaError, match="very many blocks of less than a millisecond"):
        load_audio(out.getvalue())


def test_a_video_is_heard_where_it_has_a_sound() -> None:
    from tests.data.media.test_video import video

    with pytest.raises(MediaError, match="holds no sound"):
        load_audio(video())
    with pytest.raises(MediaError, match="holds no sound"):
        audio_seconds(video(form="matroska"))


def test_no_file_is_opened_that_a_playlist_names(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(sound("m4a"))
    for text in ("#EXTM3U\n#EXTINF:1,\na.m4a\n", "ffconcat version 1.0\nfile a.m4a\n"):
        (tmp_path / "list").write_text(text)
        with pytest.raises(MediaError, match="no whole sound"):
            load_audio(tmp_path / "list")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **more)

    path = tmp_path / "a.webm"
    path.write_bytes(sound("webm"))
    monkeypatch.setattr(builtins, "__import__", without)
    words = r"a\.webm: reading WebM or Matroska needs PyAV: pip install \"muomni\[video\]\"; or convert its sound"
    for read in (load_audio, audio_seconds):
        with pytest.raises(MediaError, match=words) as raised:
            read(path)
        assert "\n" not in str(raised.value)


def test_parts_of_a_chat_in_every_form(omni: MuOmni, tmp_path: Path) -> None:
    content = sound("webm", 0.5)
    (tmp_path / "a.webm").write_bytes(content)
    coded = base64.b64encode(content).decode()
    forms: list[dict[str, Any]] = [
        {"type": "audio", "audio": content},
        {"type": "audio", "audio": str(tmp_path / "a.webm")},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/webm;codecs=opus;base64,{coded}"}},
        {"type": "input_audio", "input_audio": {"data": coded, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/webm;codecs=opus;base64,{coded}"}},
    ]
    prompts = [[form, "What is said?"] for form in forms]
    replies = omni.chat_batch(prompts, temperature=0, max_new_tokens=8)
    assert len({reply.tokens for reply in replies}) == 1
    with pytest.raises(PromptError, match="not valid base64"):
        omni.chat([{"type": "input_audio", "input_audio": {"data": "data:audio/webm;base64,***"}}])
