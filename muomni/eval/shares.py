"""Shares of a count, with the interval in which the true share lies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Of the normal distribution: 95% lie within so many standard deviations.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """So many of a total.

    Attributes:
        count, total: whole numbers.
    """

    count: int
    total: int

    @classmethod
    def of(cls, values: Iterable[bool]) -> "Share":
        """How many of some values are true."""
        listed = list(values)
        return cls(sum(listed), len(listed))

    @property
    def rate(self) -> float:
        """From 0 to 1; 0 of nothing."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """In which the true rate lies with 95% confidence (Wilson, 1927, with the score test)."""
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.rate, _Z * _Z
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        # At both ends the rate is the border, but for rounding.
        return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))

    def __str__(self) -> str:
        """As `95.2% (93.1 to 96.8)`."""
        low, high = self.interval
        return f"{self.rate:.1%} ({100 * low:.1f} to {100 * high:.1f})"
