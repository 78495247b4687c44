"""How much of what workers select is the same: how a union grows with their number."""

from __future__ import annotations

from dataclasses import dataclass

from .curve import Curve


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
