"""What a C library's heap grows to when it is asked for blocks and given them back in a known order.

Freed memory is not always of use: a block only fits into a gap that is large enough, and what is left of the gap
may be of use to nobody. In training that is 5 to 15% of the peak, too much to leave out of a forecast.

The GNU C library gives a block the smallest gap that holds it, joins neighbouring gaps at once, and else lets the
heap grow at its end (malloc/malloc.c, bins of large chunks). Blocks that are larger than a threshold have a mapping
of their own, which is given back when they are freed; the threshold rises with the blocks that are freed, up to
32 MiB. Small blocks have bins of their own, which are not modelled: they are under a hundredth of the bytes.

torch asks for addresses that are multiples of 64 (`posix_memalign`). For that the library looks for a gap that is
larger than the block by the alignment and the smallest chunk, and gives back what it did not need. So a block does not
fit into the gap that its like has left. The small pieces given back go to the thread's cache first, which keeps
seven of a size as if they were in use: these keep neighbouring gaps apart (malloc/malloc.c, _int_memalign, tcache).
"""

from collections import deque
from collections.abc import Iterable

from muomni.accel.cpu_allocator.free_list import Gaps

# Chunks lie at multiples of 16 bytes and have a header of 8; the smallest has 32.
_CHUNK = 16
_HEADER = 8
_SMALLEST = 32
# torch asks for addresses at multiples of 64.
_ALIGNMENT = 64
_SPARE = _ALIGNMENT + _SMALLEST
# Pieces of a size that a thread's cache holds.
_CACHED = 7
# Blocks up to this size are tensors themselves and the like, not numbers, and are not aligned. In bytes.
_UNALIGNED = 1024
_FIRST_THRESHOLD = 128 * 1024
_LAST_THRESHOLD = 32 * 1024 * 1024
# A number of a block and its bytes; 0 bytes give it back.
Event = tuple[int, int]


class Heap:
    """A heap of the GNU C library.

    Args:
        keep: as `accel.cpu_allocator.choice` tells it: no block has a mapping of its own, and the end is not given
        back.

    Attributes:
        live: bytes of blocks that are in use.
        now, peak: bytes of the process: blocks, gaps and headers.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.live = self.now = self.peak = 0
        self._end = 0
        self._threshold = _FIRST_THRESHOLD
        self._blocks: dict[int, tuple[int, int, int]] = {}  # number: start (-1: a mapping), bytes taken, bytes asked
        self._gaps = Gaps()
        self._cached: dict[int, deque[int]] = {}  # starts of spare pieces by size, the oldest first

    def take(self, events: Iterable[Event]) -> None:
        """Does what the events say, in order."""
        for number, size in events:
            if size:
                self.allocate(number, size)
            else:
                self.free(number)

    def allocate(self, number: int, size: int) -> None:
        """Makes a block."""
        taken = max(_SMALLEST, -(-(size + _HEADER) // _CHUNK) * _CHUNK)
        if not self.keep and size >= self._threshold:
            self.now += taken
            start = -1
        elif self.keep and size > _UNALIGNED:  # only here do the spare pieces lie between large blocks
            start, taken = self._place_aligned(taken)
        else:
            start = self._place(taken)
        self._blocks[number] = start, taken, size
        self.live += size
        self.peak = max(self.peak, self.now)

    def free(self, number: int) -> None:
        """Gives a block back."""
        start, taken, size = self._blocks.pop(number)
        self.live -= size
        if start < 0:
            self.now -= taken
            self._threshold = min(max(self._threshold, size), _LAST_THRESHOLD)
            return
        self._give_back(start, start + taken)

    def _give_back(self, start: int, end: int) -> None:
        start, end = self._gaps.joined(start, end)
        if end == self._end:
            self._end = start
            if not self.keep:
                self.now -= end - start
            return
        self._gaps.add(start, end - start)

    def _place_aligned(self, taken: int) -> tuple[int, int]:
        found = self._place(taken + _SPARE)
        # What is at the multiple is the memory, behind two words of the chunk.
        before = -(found + 2 * _HEADER) % _ALIGNMENT
        if 0 < before < _SMALLEST:
            before += _ALIGNMENT
        behind = _SPARE - before
        start = found + before
        if before:
            self._cache(found, before)
        if behind > _SMALLEST:
            self._cache(start + taken, behind)
        else:
            taken += behind
        return start, taken

    def _cache(self, start: int, size: int) -> None:
        """A spare piece goes to the thread's cache; the oldest of its size leaves that."""
        pieces = self._cached.setdefault(size, deque())
        pieces.append(start)
        if len(pieces) > _CACHED:
            oldest = pieces.popleft()
            self._give_back(oldest, oldest + size)

    def _place(self, taken: int) -> int:
        found = self._gaps.take(taken)
        if found is not None:
            size, start = found
            if size > taken:
                self._gaps.add(start + taken, size - taken)
            return start
        start = self._end
        self._end += taken
        if self.keep:
            self.now = max(self.now, self._end)
        else:
            self.now += taken
        return start
