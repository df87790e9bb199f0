"""The model of the C library's heap."""

import random

from hypothesis import given
from hypothesis import strategies as st

from muomni.accel.cpu_allocator.glibc_simulator import Heap

MIB = 1024 * 1024


def test_blocks_one_behind_the_other_have_no_gaps() -> None:
    heap = Heap(keep=True)
    heap.take((n, MIB) for n in range(8))
    assert heap.live == 8 * MIB
    assert 8 * MIB <= heap.peak <= 8 * MIB + 8 * 256


def test_a_block_takes_the_smallest_gap_that_holds_it() -> None:
    heap = Heap(keep=True)
    # Gaps of 4 and of 2 MiB, each between blocks that stay.
    heap.take([(0, 4 * MIB), (1, MIB), (2, 2 * MIB), (3, MIB), (0, 0), (2, 0)])
    before = heap.peak
    heap.take(
        [(4, 2 * MIB - 256), (5, 4 * MIB - 256)]
    )  # were the larger gap taken first, the second block would have none
    assert heap.peak == before


def test_neighbouring_gaps_become_one() -> None:
    heap = Heap(keep=True)
    # The last blocks still have pieces of the thread's cache between them, the first ones have not.
    heap.take([*((n, MIB) for n in range(40)), (0, 0), (2, 0), (1, 0)])
    before = heap.peak
    heap.take([(40, 3 * MIB)])
    assert heap.peak == before


def test_a_block_does_not_fit_where_its_like_was() -> None:
    heap = Heap(keep=True)
    heap.take([(0, MIB), (1, MIB), (0, 0)])
    before = heap.peak
    heap.take([(2, MIB)])
    assert heap.peak > before + MIB - 1


def test_the_threads_cache_keeps_gaps_apart() -> None:
    heap = Heap(keep=True)
    heap.take([(0, MIB), (1, MIB), (2, MIB), (3, MIB), (0, 0), (1, 0), (2, 0)])
    before = heap.peak
    heap.take([(4, 2 * MIB)])
    assert heap.peak > before


def test_what_stays_between_two_gaps_costs_memory() -> None:
    heap = Heap(keep=True)
    heap.take([(0, MIB), (1, 1000), (2, MIB), (3, 1000), (0, 0), (2, 0), (4, 2 * MIB)])
    assert heap.peak > 4 * MIB
    assert heap.live < 2.1 * MIB


def test_kept_memory_stays_with_the_process_and_other_memory_does_not() -> None:
    for keep in (True, False):
        heap = Heap(keep)
        heap.take([(0, 64 * MIB), (1, MIB), (0, 0), (1, 0)])
        assert heap.live == 0
        assert (heap.now > 64 * MIB) == keep


def test_a_mapping_of_its_own_leaves_no_gap() -> None:
    mapped, kept = Heap(keep=False), Heap(keep=True)
    events = [(0, 64 * MIB), (1, MIB), (0, 0), (2, 65 * MIB)]
    mapped.take(events)
    kept.take(events)
    assert mapped.peak < 67 * MIB
    assert kept.peak > 129 * MIB


@given(st.integers(0, 2**32), st.booleans())
def test_what_is_in_use_is_never_more_than_the_heap(seed: int, keep: bool) -> None:
    draw = random.Random(seed)
    heap, live = Heap(keep), dict[int, int]()
    for number in range(200):
        if live and draw.random() < 0.45:
            gone = draw.choice(list(live))
            del live[gone]
            heap.free(gone)
        else:
            live[number] = draw.randint(1, 4 * MIB)
            heap.allocate(number, live[number])
        assert heap.live == sum(live.values()) <= heap.now <= heap.peak
    for number in live:
        heap.free(number)
    assert heap.live == 0
    assert keep or heap.now == 0
