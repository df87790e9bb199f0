"""What `arena.cpp` does, block by block, without any memory: for forecasts."""

from bisect import bisect_left, insort

# As in arena.cpp. Smaller tensors are the C library's.
SMALL = 32 * 1024
UNIT = 256
LEAST_GAP = 4 * 1024


class FreeList:
    """Free ranges of addresses, none of them next to another."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []  # (bytes, start), sorted
        self._starting: dict[int, int] = {}  # by start: their bytes
        self._ending: dict[int, int] = {}  # by end: their start

    def take(self, size: int) -> tuple[int, int] | None:
        """Removes the smallest of at least `size` bytes, of equal ones the first; its (bytes, start)."""
        index = bisect_left(self.ranges, (size, -1))
        if index == len(self.ranges):
            return None
        taken, start = self.ranges[index]
        self._remove(start)
        return taken, start

    def joined(self, start: int, end: int) -> tuple[int, int]:
        """A range that became free with its free neighbours, which are removed; `add` puts it in."""
        if end in self._starting:
            end += self._remove(end)
        if start in self._ending:
            start = self._ending[start]
            self._remove(start)
        return start, end

    def add(self, start: int, size: int) -> None:
        """Puts in a range that has no free neighbours."""
        insort(self.ranges, (size, start))
        self._starting[start] = size
        self._ending[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._starting.pop(start)
        del self._ending[start + size]
        del self.ranges[bisect_left(self.ranges, (size, start))]
        return size


class ArenaSimulator:
    """An arena with the C library's small blocks beside it.

    Attributes:
        live: bytes that were asked for.
        end, peak: of the region in bytes, now and at most so far.
        free_list: gaps of the region.
        now: bytes of the process: the region as far as it ever was in use, and the small blocks at their most.
    """

    def __init__(self) -> None:
        self.live = self.end = self.now = self.peak = 0
        self._small = self._most_small = 0
        self._blocks: dict[int, tuple[int, int, int]] = {}  # number: start (-1: small), bytes taken, bytes asked
        self.free_list = FreeList()

    def allocate(self, number: int, size: int, in_arena: bool = True) -> int:
        """Makes a block; returns where it begins, -1 for one outside.

        Args:
            number: of the block.
            size: in bytes.
            in_arena: it is a tensor's; others are the C library's whatever their size.
        """
        start, taken = -1, size
        if in_arena and size >= SMALL:
            start, taken = self._place(-(-size // UNIT) * UNIT + UNIT)
        else:
            self._small += size
            self._most_small = max(self._most_small, self._small)
        self._blocks[number] = start, taken, size
        self.live += size
        self.now = self.peak + self._most_small
        return start

    def free(self, number: int) -> None:
        """Gives a block back."""
        start, taken, size = self._blocks.pop(number)
        self.live -= size
        if start < 0:
            self._small -= size
            return
        start, end = self.free_list.joined(start, start + taken)
        if end == self.end:
            self.end = start
        else:
            self.free_list.add(start, end - start)

    def _place(self, taken: int) -> tuple[int, int]:
        gap = self.free_list.take(taken)
        if gap is not None:
            size, start = gap
            if size - taken < LEAST_GAP:
                return start, size
            self.free_list.add(start + taken, size - taken)
            return start, taken
        start = self.end
        self.end += taken
        self.peak = max(self.peak, self.end)
        return start, taken
