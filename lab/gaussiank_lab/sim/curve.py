"""Measured cost curves: seconds, or anything else above zero, over size."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Interpolate between measured points, straight lines on two logarithmic axes.

    A straight line there is a power law, which costs over size are, piece by piece. Below the first point its value
    holds: what is left is overhead. Above the last one the last slope goes on.

    Args:
        sizes: ascending, above 0.
        values: one for each, above 0; an empty curve costs nothing at any size.

    Raises:
        ValueError: points that do not ascend, or are not above 0.

    Example:
        >>> curve = Curve.of([(1e3, 1e-5), (1e6, 1e-3), (1e8, 1e-1)])
        >>> [round(curve(size), 6) for size in (10, 1e6, 1e7, 1e9)]
        [1e-05, 0.001, 0.01, 1.0]
    """

    sizes: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.values):
            raise ValueError(
                f"values must be as many as the {len(self.sizes)} sizes, got {len(self.values)}. Give one for each."
            )
        if any(not (math.isfinite(number) and number > 0) for number in (*self.sizes, *self.values)):
            raise ValueError(f"points must be above 0, got {list(self.points())}. Remove what was not measured.")
        if any(later <= earlier for earlier, later in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(f"sizes must ascend, got {list(self.sizes)}. Sort them, each once.")

    @classmethod
    def of(cls, points: Iterable[Sequence[float]]) -> Curve:
        """Make a curve from (size, value) pairs."""
        pairs = [(float(size), float(value)) for size, value in points]
        return cls(tuple(size for size, _ in pairs), tuple(value for _, value in pairs))

    @classmethod
    def linear(cls, overhead_s: float, each_s: float) -> Curve:
        """Make the curve ``overhead + size * each`` of a device that is limited by its memory.

        Args:
            overhead_s: seconds of an empty call, above 0.
            each_s: seconds an element.

        Example:
            >>> round(Curve.linear(1e-5, 1e-9)(1e6), 7)
            0.00101
        """
        return cls.of((10.0**e, overhead_s + 10.0**e * each_s) for e in range(11))

    def points(self) -> list[tuple[float, float]]:
        """Return the (size, value) pairs."""
        return list(zip(self.sizes, self.values, strict=False))

    def times(self, factor: float) -> Curve:
        """Return the curve with all values multiplied."""
        return Curve(self.sizes, tuple(factor * value for value in self.values))

    def __call__(self, size: float) -> float:
        """Return the value at a size; 0 at size 0, or of an empty curve."""
        if not self.sizes or size <= 0:
            return 0.0
        if size <= self.sizes[0]:
            return self.values[0]
        if len(self.sizes) == 1:  # no slope is known: cost in proportion
            return self.values[0] * size / self.sizes[0]
        right = min(bisect_right(self.sizes, size), len(self.sizes) - 1)
        (x0, x1), (y0, y1) = self.sizes[right - 1 : right + 1], self.values[right - 1 : right + 1]
        return math.exp(math.log(y0) + math.log(y1 / y0) * math.log(size / x0) / math.log(x1 / x0))
