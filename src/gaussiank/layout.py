"""Which parameter lies where in a flat vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # whoever asks for a layout alone need not wait for torch
    from torch import Tensor

Strides = tuple[int, ...] | None
"""Order in which a parameter's entries lie in a flat vector; None for that of its indices."""


@dataclass(frozen=True)
class Layout:
    """Name the parameters that lie end to end in a flat vector, with their lengths.

    DDP lays a gradient down in the order in which the parameter lies in memory; that of a convolution in
    ``channels_last`` is not the order of its indices.

    Args:
        names: of the parameters.
        numels: how many entries each has.
        strides: for each parameter, strides of its entries in the vector, or None for the order of its indices; empty
            where all are None.

    Example:
        >>> layout = Layout(("weight", "bias"), (6, 2))
        >>> layout.numel, dict(layout.slices())["bias"]
        (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    strides: tuple[Strides, ...] = ()

    @cached_property
    def numel(self) -> int:
        """Length of the whole vector."""
        return sum(self.numels)

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield each name with its place in the vector."""
        ends = accumulate(self.numels)
        for name, numel, end in zip(self.names, self.numels, ends, strict=True):
            yield name, slice(end - numel, end)

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """Yield each name with its place and its order in the vector."""
        for (name, place), strides in zip(self.slices(), self.strides or (None,) * len(self.names), strict=True):
            yield name, Piece(place, strides)


class Piece(NamedTuple):
    """Where a parameter lies in a flat vector, and in which order.

    Example:
        >>> import torch
        >>> Piece(slice(2, 8), strides=(1, 2)).of(torch.arange(8), (2, 3)).tolist()
        [[2, 4, 6], [3, 5, 7]]
    """

    place: slice
    strides: Strides

    def of(self, vector: Tensor, shape: Sequence[int]) -> Tensor:
        """View what lies in a vector for a parameter in the parameter's shape."""
        piece = vector[self.place]
        return piece.view(tuple(shape)) if self.strides is None else piece.as_strided(tuple(shape), self.strides)


def strides_in_memory(parameter: Tensor) -> Strides:
    """Return the strides with which DDP lays a parameter's gradient down, or None for the order of its indices.

    Example:
        >>> import torch
        >>> strides_in_memory(torch.empty(1, 3, 2, 2).to(memory_format=torch.channels_last))
        (12, 1, 6, 3)
        >>> strides_in_memory(torch.empty(4, 3)[:, :2])  # has gaps: no order in memory to follow
    """
    if parameter.is_contiguous():
        return None
    end = 1
    for size, stride in sorted(zip(parameter.shape, parameter.stride(), strict=True), key=lambda pair: pair[1]):
        if size > 1 and stride != end:
            return None
        end *= size
    return parameter.stride()
