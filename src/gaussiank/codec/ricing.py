"""Rice parameters of blocks of 64 numbers, as indices and values choose them; C has the same in ``csrc/rice.h``."""

from __future__ import annotations

import numpy as np

from .bits import Ints

BLOCK = 64


def blocks_of(count: int) -> int:
    """Return the blocks that hold ``count`` numbers.

    Example:
        >>> blocks_of(65)
        2
    """
    return -(-count // BLOCK)


def spread(parameters: Ints, count: int) -> Ints:
    """Repeat each block's parameter for its numbers."""
    return np.repeat(parameters, BLOCK)[:count]


def choose(numbers: Ints) -> tuple[Ints, Ints]:
    """Choose a parameter for each block: the logarithm of its mean, or one or two less when that is shorter.

    Returns:
        int64 ``[blocks]`` parameters, and the sums of the quotients that they leave.

    Example:
        >>> choose(np.array([0, 9, 8]))
        (array([2]), array([4]))
    """
    starts = np.arange(0, len(numbers), BLOCK)
    sizes = np.minimum(BLOCK, len(numbers) - starts)
    mean = np.add.reduceat(numbers, starts) // sizes
    top = np.maximum(np.frexp(mean.astype(np.float64))[1].astype(np.int64) - 1, 0)
    best, most = top, np.full(len(starts), np.iinfo(np.int64).max)
    best_quotients = most
    for less in range(3):
        parameters = np.maximum(top - less, 0)
        quotients = np.add.reduceat(numbers >> spread(parameters, len(numbers)), starts)
        bits = sizes * parameters + quotients
        better = bits < most
        best, best_quotients = np.where(better, parameters, best), np.where(better, quotients, best_quotients)
        most = np.minimum(bits, most)
    return best, best_quotients
