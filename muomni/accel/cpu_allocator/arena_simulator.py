"""What `arena.cpp` does, block by block, without any memory: for forecasts."""

from muomni.accel.cpu_allocator.free_list import Gaps

# As in arena.cpp. Smaller tensors are the C library's.
SMALL = 32 * 1024
UNIT = 256
LEAST_GAP = 4 * 1024


class PoolModel:
    """A pool with the C library's small blocks beside it.

    Attributes:
        live: bytes that were asked for.
        end, peak: of the region, now and at most so far.
        gaps: of the region.
        now: bytes of the process: the region as far as it ever was in use, and the small blocks at their most.
    """

    def __init__(self) -> None:
        self.live = self.end = self.now = self.peak = 0
        self._small = self._most_small = 0
        self._blocks: dict[int, tuple[int, int, int]] = {}  # number: start (-1: small), bytes taken, bytes asked
        self.gaps = Gaps()

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
        start, end = self.gaps.joined(start, start + taken)
        if end == self.end:
            self.end = start
        else:
            self.gaps.add(start, end - start)

    def _place(self, taken: int) -> tuple[int, int]:
        found = self.gaps.take(taken)
        if found is not None:
            size, start = found
            if size - taken < LEAST_GAP:
                return start, size
            self.gaps.add(start + taken, size - taken)
            return start, taken
        start = self.end
        self.end += taken
        self.peak = max(self.peak, self.end)
        return start, taken
