"""Which parameter lies where in a flat vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Layout:
    """Name the parameters that lie end to end in a flat vector, with their lengths.

    Example:
        >>> layout = Layout(("weight", "bias"), (6, 2))
        >>> layout.numel, dict(layout.slices())["bias"]
        (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Length of the whole vector."""
        return sum(self.numels)

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield each name with its place in the vector."""
        ends = accumulate(self.numels)
        for name, numel, end in zip(self.names, self.numels, ends, strict=True):
            yield name, slice(end - numel, end)
