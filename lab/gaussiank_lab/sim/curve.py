"""Curves through measured points, the growth of unions and the bits of a wire on them; checks of settings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HEADER_BYTES = 20
"""Of a payload of ours: ``gaussiank.codec.HEADER_BYTES``, which would bring torch."""


def require_above_zero(field: str, value: float, hint: str) -> None:
    """Raise unless ``value`` is a finite number above 0.

    Raises:
        ValueError: it is not; names the field.

    Example:
        >>> require_above_zero("bandwidth_bits_s of 10gbe", 0, "A cluster without a link has one worker.")
        Traceback (most recent call last):
            ...
        ValueError: bandwidth_bits_s of 10gbe must be above 0, got 0. A cluster without a link has one worker.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} must be above 0, got {value:g}. {hint}")


def require_at_least(field: str, value: float, least: float, hint: str) -> None:
    """Raise unless ``value`` is a finite number that is not below ``least``.

    Raises:
        ValueError: it is not; names the field.
    """
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{field} must be at least {least:g}, got {value:g}. {hint}")


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


@dataclass(frozen=True)
class Overlap:
    """Model selections as a common core, which all workers choose, and the rest, drawn independently.

    ``union(P) = c k + (d - c k) (1 - (1 - (1 - c) k / (d - c k))**P)``: c = 0 are independent draws, c = 1 equal ones.

    Args:
        common: share c of each selection that all workers choose.
        measured: union over k, over workers, from real selections; replaces the formula.

    Example:
        >>> round(Overlap(0.0).union(1000, 10**6, 16)), round(Overlap(0.5).union(1000, 10**6, 16))
        (15881, 8470)
    """

    common: float = 0.0
    measured: Curve | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise ValueError(f"common must be in [0, 1], got {self.common:g}. 0 is a union of independent draws.")

    def union(self, k: float, numel: float, workers: float) -> float:
        """Return how many different entries ``workers`` select together, k each of ``numel``."""
        k = min(k, numel)
        if k <= 0:
            return 0.0
        if self.measured is not None:
            return min(numel, k * workers, max(k, k * self.measured(workers)))
        core = self.common * k
        rest = numel - core
        if rest <= 0:
            return core
        return float(core + rest * (1.0 - (1.0 - (k - core) / rest) ** workers))


@dataclass(frozen=True)
class WireSize:
    """Say how many bits an entry has on the wire; the numbers come from the real codec, which is not imported here.

    Args:
        name: index code and value code, as the codec names them.
        value_bits: of a value.
        fixed_value_bits: of a value where a message has one size, whatever it holds; ``value_bits`` when None.
        index_bits: of an index, over density.
        header_bytes: of a payload.

    Example:
        >>> raw = WireSize("raw+fp32", 32, Curve.of([(1e-6, 32), (1, 32)]), header_bytes=20)
        >>> raw.payload_bytes(1000, 10**6)
        8020.0
    """

    name: str
    value_bits: float
    index_bits: Curve
    header_bytes: int = HEADER_BYTES
    fixed_value_bits: float | None = None

    def __post_init__(self) -> None:
        require_at_least(f"value_bits of wire {self.name}", self.value_bits, 0, "32 for float32.")
        require_at_least(f"header_bytes of wire {self.name}", self.header_bytes, 0, "20 for ours.")

    def fixed(self) -> WireSize:
        """Return the wire of messages that have room for any values.

        Example:
            >>> WireSize("w", 7, fixed_bits(12), fixed_value_bits=16).fixed().payload_bytes(8, 100)
            48.0
        """
        return self if self.fixed_value_bits is None else replace(self, value_bits=self.fixed_value_bits)

    def payload_bytes(self, entries: float, numel: float) -> float:
        """Return the size of a payload with so many entries of a vector of ``numel``."""
        density = min(1.0, entries / numel) if numel else 1.0
        return self.header_bytes + entries * (self.value_bits + self.index_bits(density)) / 8


def fixed_bits(bits: float) -> Curve:
    """Return the curve of a code whose indices always have the same width."""
    return Curve.of([(1e-9, bits), (1, bits)])
