"""Gaps between blocks: the smallest that holds a block is taken, and neighbours are joined."""

from bisect import bisect_left, insort


class Gaps:
    """Free ranges of addresses, none of them next to another."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []  # (bytes, start), sorted
        self._starting: dict[int, int] = {}  # by start: their bytes
        self._ending: dict[int, int] = {}  # by end: their start

    def take(self, size: int) -> tuple[int, int] | None:
        """Removes the smallest of at least `size` bytes, of equal ones the first; its (bytes, start)."""
        found = bisect_left(self.ranges, (size, -1))
        if found == len(self.ranges):
            return None
        taken, start = self.ranges[found]
        self._remove(start)
        return taken, start

    def joined(self, start: int, end: int) -> tuple[int, int]:
        """A range that became free with its free neighbours, which are removed; `add` makes it a gap."""
        if end in self._starting:
            end += self._remove(end)
        if start in self._ending:
            start = self._ending[start]
            self._remove(start)
        return start, end

    def add(self, start: int, size: int) -> None:
        """Makes a gap; it has no free neighbours."""
        insort(self.ranges, (size, start))
        self._starting[start] = size
        self._ending[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._starting.pop(start)
        del self._ending[start + size]
        del self.ranges[bisect_left(self.ranges, (size, start))]
        return size
