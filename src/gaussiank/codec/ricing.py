"""Rice parameters of blocks of 64 numbers, as indices and values choose them; C has the same in ``csrc/rice.h``."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .bits import Ints

Each = TypeVar("Each", bound=np.generic)

BLOCK = 64


def blocks_of(count: int) -> int:
    """Return the blocks that hold ``count`` numbers.

    Example:
        >>> blocks_of(65)
        2
    """
    return -(-count // BLOCK)


def spread(parameters: NDArray[Each], count: int) -> NDArray[Each]:
    """Repeat what each block has for its numbers."""
    return np.repeat(parameters, BLOCK)[:count]


def most_bits(count: int, numel: int) -> int:
    """Return the most bits that the gaps of ``count`` indices take, without the parameters.

    Each block's size is at most the minimum over r of ``n (r + 1) + sum(gaps) / 2**r``, which is concave in the sum: so
    no distribution of gaps over blocks is worse than the even one.

    Example:
        >>> most_bits(1000, 10**6)
        11951
    """
    rest = numel - count
    r = (rest // (2 * count)).bit_length() if count else 0  # the least: halving the rest saves less than count
    return count * (r + 1) + (rest >> r)


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
