"""What `pool.cpp` does, block by block, without any memory: for forecasts."""

from bisect import bisect_left, insort

# As in pool.cpp. Smaller tensors are the C library's.
SMALL = 32 * 1024
UNIT = 256
LEAST_GAP = 4 * 1024


class PoolModel:
    """A pool with the C library's small blocks beside it.

    Attributes:
        live: bytes that were asked for.
        end, peak: of the region, now and at most so far.
        now: bytes of the process: the region as far as it ever was in use, and the small blocks at their most.
    """

    def __init__(self) -> None:
        self.live = self.end = self.now = self.peak = 0
        self._small = self._most_small = 0
        self._blocks: dict[int, tuple[int, int, int]] = {}  # number: start (-1: small), bytes taken, bytes asked
        self._gaps: list[tuple[int, int]] = []  # (bytes, start), sorted
        self._starting: dict[int, int] = {}  # gaps by start: their bytes
        self._ending: dict[int, int] = {}  # gaps by end: their start

    def allocate(self, number: int, size: int, pooled: bool = True) -> int:
        """Makes a block; returns where it begins, -1 for one outside.

        Args:
            number: of the block.
            size: in bytes.
            pooled: it is a tensor's; others are the C library's whatever their size.
        """
        start, taken = -1, size
        if pooled and size >= SMALL:
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
        end = start + taken
        if end in self._starting:
            end += self._remove(end)
        if start in self._ending:
            start = self._ending[start]
            self._remove(start)
        if end == self.end:
            self.end = start
        else:
            self._add(start, end - start)

    def _place(self, taken: int) -> tuple[int, int]:
        found = bisect_left(self._gaps, (taken, -1))
        if found < len(self._gaps):
            size, start = self._gaps[found]
            self._remove(start)
            if size - taken < LEAST_GAP:
                return start, size
            self._add(start + taken, size - taken)
            return start, taken
        start = self.end
        self.end += taken
        self.peak = max(self.peak, self.end)
        return start, taken

    def _add(self, start: int, size: int) -> None:
        insort(self._gaps, (size, start))
        self._starting[start] = size
        self._ending[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._starting.pop(start)
        del self._ending[start + size]
        del self._gaps[bisect_left(self._gaps, (size, start))]
        return size
