"""Which unit each frame of a recording speaks."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data.speech.forced_alignment import (
    AlignerSpec,
    Recordings,
    Spoken,
    align,
    best_paths,
    features_of,
    letters_of,
    pointers_of,
    unit_starts,
)
from muomni.data.speech.spoken_text import clip_words, units_of
from muomni.errors import DataError


def units(text: str) -> np.ndarray:
    return np.array(units_of(clip_words(text))[0])


def brute_force(scores: np.ndarray, classes: list[int]) -> float:
    """The best sum over all paths that CTC reads as `classes`."""
    best = -np.inf
    T, C = scores.shape
    for path in itertools.product(range(C), repeat=T):
        if [c for c, _ in itertools.groupby(path) if c] == classes:
            best = max(best, float(sum(scores[t, c] for t, c in enumerate(path))))
    return best


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 9999))
def test_paths_are_the_most_likely_ones_whatever_stands_beside_them(rows: list[list[int]], seed: int) -> None:
    drawn = np.random.default_rng(seed)
    T = 7
    lengths = np.array([drawn.integers(2 * len(own), T + 1) for own in rows])
    scores = F.log_softmax(torch.from_numpy(drawn.normal(size=(len(rows), T, 3)) * 2).float(), -1).numpy()
    found = best_paths(scores, lengths, [np.array(own) for own in rows])
    for n, own in enumerate(rows):
        assert found[n].score * lengths[n] == pytest.approx(brute_force(scores[n, : lengths[n]], own), abs=1e-4)
        middles = found[n].middles
        assert len(middles) == len(own) and (np.diff(middles) > 0).all()
        assert middles[0] >= 0 and middles[-1] < lengths[n]


def test_middles_are_where_the_letters_are() -> None:
    path = [0, 1, 1, 0, 2, 2, 2, 0, 0, 2, 0]
    scores = np.full((1, len(path), 3), -9.0, np.float32)
    scores[0, np.arange(len(path)), path] = 0
    (found,) = best_paths(scores, np.array([len(path)]), [np.array([1, 2, 2])])
    assert found.middles.tolist() == [1.5, 5.0, 9.0] and found.score == 0


def test_letters_are_what_is_heard() -> None:
    own = units('"Oh, no" - it\'s Twenty-four: né!')
    letters, places = letters_of(own)
    heard = bytes(letters.astype(np.uint8)).decode()
    assert heard == "oh,no,its twentyfour,né"
    assert all(own[p] in (letter, letter - 32) or letter == 44 for p, letter in zip(places, letters, strict=True))
    assert not len(letters_of(np.array([256, 257]))[0])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
    st.integers(2, 60),
    st.integers(1, 9),
    st.floats(0, 500),
)
def test_pointers_only_move_forward_and_by_what_is_allowed(
    gaps: list[float], frames: int, max_advance: int, delay: float
) -> None:
    starts = np.concatenate(([-np.inf], np.cumsum(gaps) * 640)).astype(np.float32)
    found = pointers_of(starts, frames, 640, delay, max_advance)
    last = len(gaps)
    if (frames - 1) * max_advance < last:
        assert found is None
        return
    assert found is not None and found.shape == (frames,) and found[0] == 0 and found[-1] == last
    steps = np.diff(found)
    assert steps.min() >= 0 and steps.max() <= max_advance


def test_pointers_follow_the_times() -> None:
    starts = np.array([-np.inf, 600, 1300, 1300, 3300, 5800], np.float32)
    found = pointers_of(starts, 10, 640, 480, 8)
    # Middles of the frames: -160, 480, 1120, 1760, ...
    assert found is not None and found.tolist() == [0, 0, 1, 3, 3, 3, 4, 4, 4, 5]
    crowd = np.array([-np.inf, *[1000.0] * 12, 9000], np.float32)
    slow = pointers_of(crowd, 12, 640, 0, 4)
    assert slow is not None and slow[:6].tolist() == [0, 2, 6, 10, 12, 12]


def test_silence_at_the_ends_is_begin_and_end() -> None:
    own = units("A b.")
    features = np.zeros((100, 80), np.uint8)
    features[20:60, 7] = 255
    starts = unit_starts(own, Spoken(np.array([30.0, 40.0, 50.0], np.float32), 0.0), features)
    assert len(starts) == 6 and starts[0] == -np.inf and (np.diff(starts[1:]) >= 0).all()
    assert starts[1] / 320 == pytest.approx(20, abs=0.5)
    assert starts[2:4] / 320 == pytest.approx([35.25, 45.25], abs=0.01)
    assert starts[4] == starts[5] and starts[5] / 320 == pytest.approx(60, abs=0.5)
    # A noise far from the speech is not its beginning.
    features[0, 7] = features[99, 7] = 255
    again = unit_starts(own, Spoken(np.array([30.0, 40.0, 50.0], np.float32), 0.0), features)
    assert again[1] / 320 == pytest.approx(15.25, abs=0.5) and again[5] / 320 == pytest.approx(75.25, abs=0.5)


def test_features_do_not_depend_on_loudness() -> None:
    samples = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1
    found = features_of(samples)
    assert found.shape == (16, 80) and found.dtype == np.uint8 and found.max() > 200
    assert np.abs(found.astype(int) - features_of(samples * 0.25).astype(int)).max() <= 1


def made(count: int, seed: int = 0) -> tuple[Recordings, list[np.ndarray]]:
    """Texts of four letters, each a band of its own for 4 to 9 frames; and where each letter's middle is."""
    drawn = np.random.default_rng(seed)
    rows, texts, middles = [], [], []
    for _ in range(count):
        text = "".join(drawn.choice(list("abcd"), drawn.integers(3, 9)))
        sizes = drawn.integers(4, 10, len(text))
        row = drawn.integers(0, 60, (10 + int(sizes.sum()) + 10, 80)).astype(np.uint8)
        place, own = 10, []
        for letter, size in zip(text, sizes, strict=True):
            band = 20 * "abcd".index(letter)
            row[place : place + size, band : band + 12] = 230
            own.append(place + (size - 1) / 2)
            place += size
        rows.append(row)
        texts.append(units(text))
        middles.append(np.array(own))
    lengths = np.array([len(row) for row in rows])
    return Recordings(np.concatenate(rows), np.cumsum(lengths) - lengths, lengths, texts), middles


def test_letters_are_learnt_and_found() -> None:
    recordings, middles = made(120)
    spec = AlignerSpec(steps=60, batch_frames=1000)
    state = torch.random.get_rng_state()
    shares: list[float] = []
    found = align(recordings, spec, shares.append)
    assert state.equal(torch.random.get_rng_state())
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    errors = np.concatenate([np.abs(one.middles - own) for one, own in zip(found, middles, strict=True)])
    assert np.median(errors) < 3 and np.quantile(errors, 0.95) < 8
    quick = AlignerSpec(steps=4, batch_frames=400)
    found, again = align(recordings, quick), align(recordings, quick)
    assert all(np.array_equal(a.middles, b.middles) and a.score == b.score for a, b in zip(found, again, strict=True))


def test_what_cannot_be_aligned_is_told() -> None:
    recordings, _ = made(6)
    long = Recordings(
        recordings.features, recordings.starts, recordings.lengths, [units("ab" * 60), *recordings.units[1:]]
    )
    found = align(long, AlignerSpec(steps=2))
    assert found[0].score == -np.inf and all(one.score > -np.inf for one in found[1:])
    with pytest.raises(DataError, match="do not belong together"):
        align(Recordings(recordings.features, recordings.starts, recordings.lengths, [units("ab" * 60)] * 6))
    with pytest.raises(DataError, match="has a letter"):
        align(Recordings(recordings.features, recordings.starts, recordings.lengths, [np.array([256, 257])] * 6))
