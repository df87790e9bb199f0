"""The rule by which the place in the text moves on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muomni.infer.speech.speaker import Place, advance
from tests.infer.speech.reference import Pointer

PATIENCE = 50
CPU = torch.device("cpu")


def logits_of(seed: int, frames: int, rows: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(frames, rows, classes, generator=generator)


@given(st.integers(0, 2**31), st.integers(1, 8), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
def test_rows_move_as_the_rule_says_in_plain_numbers(seed: int, most: int, ends: list[int], drawn: bool) -> None:
    frames = 40
    logits = logits_of(seed, frames, len(ends), most + 2)
    numbers = torch.rand(frames, len(ends), generator=torch.Generator().manual_seed(seed))
    place = Place.start(len(ends), CPU)
    rules = [Pointer(end, drawn) for end in ends]
    counts = [0] * len(ends)
    for frame in range(frames):
        place = advance(logits[frame], place, torch.tensor(ends), PATIENCE, numbers[frame] if drawn else None)
        for n, rule in enumerate(rules):
            if not rule.ended:
                rule.move(logits[frame, n].tolist(), float(numbers[frame, n]))
                counts[n] += 1
        assert place.ended.tolist() == [rule.ended for rule in rules]
        assert place.pointer.tolist() == [rule.place for rule in rules]
        assert place.frames.tolist() == counts


@given(st.integers(0, 2**31), st.booleans())
def test_it_neither_goes_back_nor_too_far_and_ends_on_the_end_alone(seed: int, drawn: bool) -> None:
    ends = torch.tensor([1, 5, 9])
    logits = logits_of(seed, 60, 3, 6)
    numbers = torch.rand(60, 3, generator=torch.Generator().manual_seed(seed))
    place = Place.start(3, CPU)
    for frame in range(60):
        before, place = place, advance(logits[frame], place, ends, PATIENCE, numbers[frame] if drawn else None)
        step = place.pointer - before.pointer
        assert bool(((step >= 0) & (step <= 4) & (place.pointer <= ends)).all())
        assert bool((before.pointer == ends)[place.ended].all())


def test_expected_moves_are_saved_up_where_staying_is_always_most_likely() -> None:
    chances = torch.tensor([[0.7, 0.3, 1e-9]])
    place = Place.start(1, CPU)
    for frame in range(1, 101):
        place = advance(chances.log(), place, torch.tensor([1000]), PATIENCE)
        assert int(place.pointer) == int(0.5 + 0.3 * frame + 1e-4)


def test_a_nearly_certain_move_is_made_at_once() -> None:
    place = advance(torch.tensor([[0.1, 0.9, 0.0]]).log(), Place.start(1, CPU), torch.tensor([9]), PATIENCE)
    assert int(place.pointer) == 1


@pytest.mark.parametrize(("chance", "frames"), [(0.6, 1), (0.5, 1), (0.3, 2), (0.1, 7), (0.02, 35)])
def test_it_stops_where_half_of_drawn_rows_would_have_stopped(chance: float, frames: int) -> None:
    logits = torch.tensor([[1 - chance, 0.0, chance + 1e-6]]).log()
    place = Place.start(1, CPU)._replace(pointer=torch.tensor([3]))
    while not bool(place.ended):
        place = advance(logits, place, torch.tensor([3]), PATIENCE)
    assert int(place.frames) == frames


def test_it_counts_how_long_it_stays_and_keeps_what_is_too_long() -> None:
    stay, go = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0.0, 30.0, 0.0]])
    place = Place.start(1, CPU)
    for frame in range(PATIENCE - 1):
        place = advance(stay, place, torch.tensor([9]), PATIENCE)
        assert int(place.waited) == frame + 1
    moved = advance(go, place, torch.tensor([9]), PATIENCE)
    assert int(moved.waited) == 0
    stuck = advance(go, advance(stay, place, torch.tensor([9]), PATIENCE), torch.tensor([9]), PATIENCE)
    assert int(stuck.waited) >= PATIENCE


def test_rows_may_follow_different_rules() -> None:
    logits = logits_of(1, 1, 2, 5)[0].expand(2, 5)
    ends, numbers = torch.tensor([9, 9]), torch.tensor([0.99, 0.99])
    both = advance(logits, Place.start(2, CPU), ends, PATIENCE, numbers, torch.tensor([True, False]))
    drawn = advance(logits, Place.start(2, CPU), ends, PATIENCE, numbers)
    expected = advance(logits, Place.start(2, CPU), ends, PATIENCE)
    assert both.pointer.tolist() == [int(drawn.pointer[0]), int(expected.pointer[1])]
