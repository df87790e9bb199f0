import base64
import itertools

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from muomni.serve.errors import ApiError
from muomni.serve.realtime.audio_buffer import AudioBuffer, decoded, pcm

SOUND = (np.sin(np.arange(4801) * 0.05) * 20_000).astype("<i2")
WHOLE = soxr.resample(SOUND / np.float32(32768), 24_000, 16_000)


@given(st.lists(st.integers(0, 2 * len(SOUND)), max_size=6))
def test_sound_may_be_cut_anywhere(cuts: list[int]) -> None:
    data, places = SOUND.tobytes(), [0, *sorted(cuts), 2 * len(SOUND)]
    buffer = AudioBuffer()
    came = [buffer.append(data[begin:end]) for begin, end in itertools.pairwise(places)]
    assert sum(map(len, came)) == buffer.end
    buffer.finish()
    sound = buffer.take(0, buffer.end)
    assert abs(len(sound) - len(WHOLE)) <= 1
    assert np.abs(sound[: len(WHOLE)] - WHOLE[: len(sound)]).max() < 1e-4
    assert buffer.begin == buffer.end == len(sound)


def test_places_are_counted_on_whatever_was_taken() -> None:
    buffer = AudioBuffer()
    for _ in range(4):
        buffer.append(SOUND.tobytes())
        buffer.finish()
    third = buffer.end // 3
    assert len(buffer.take(100, third)) == third - 100
    assert (buffer.begin, len(buffer.take(0, third + 50))) == (third, 50)
    taken = buffer.end
    buffer.append(SOUND.tobytes())
    end = buffer.end
    buffer.drop(taken - 1)  # pieces are dropped whole
    assert (buffer.begin, buffer.end) == (third + 50, end)
    buffer.drop(taken + 10)
    assert (buffer.begin, buffer.end) == (taken, end)
    held = end - buffer.begin
    assert len(buffer.take(0, 1 << 40)) == held


def test_what_is_no_sound_is_told() -> None:
    assert decoded(base64.b64encode(SOUND.tobytes()).decode(), "audio").dtype == np.float32
    for wrong in ("", "AAA", "AAAA", "?", "ä"):
        with pytest.raises(ApiError):
            decoded(wrong, "audio")
    assert pcm("", "audio") == b""
