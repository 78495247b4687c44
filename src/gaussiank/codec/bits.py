"""Streams of bits and Rice parameters for the reference codes, lowest bit of each byte first; clear, not fast."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Each = TypeVar("Each", bound=np.generic)

BLOCK = 64
"""Numbers with a Rice parameter of their own."""


def bytes_of(bits: int) -> int:
    """Return the bytes that hold ``bits``.

    Example:
        >>> bytes_of(9)
        2
    """
    return (bits + 7) // 8


def pad(vector: Tensor, size: int) -> Tensor:
    """Append zeros up to ``size`` entries; not a copy when there is nothing to append.

    Example:
        >>> import torch
        >>> pad(torch.tensor([7]), 3).tolist()
        [7, 0, 0]
    """
    missing = size - vector.numel()
    return torch.cat([vector, vector.new_zeros(missing)]) if missing else vector


def pack(numbers: Ints, widths: Ints) -> Bytes:
    """Write the lowest ``widths[i]`` bits of each number, one after the other.

    Example:
        >>> pack(np.array([1, 2, 3]), np.array([1, 2, 0])).tolist()
        [5]
    """
    owner, place = _spread(widths)
    return np.packbits(((numbers[owner] >> place) & 1).astype(np.uint8), bitorder="little")


def unpack(stream: Bytes, widths: Ints) -> Ints:
    """Read numbers of ``widths`` bits; the stream must be long enough.

    Example:
        >>> unpack(np.array([5], dtype=np.uint8), np.array([1, 2, 0])).tolist()
        [1, 2, 0]
    """
    owner, place = _spread(widths)
    bits = np.unpackbits(stream, count=len(owner), bitorder="little").astype(np.int64)
    numbers = np.zeros(len(widths), dtype=np.int64)
    np.add.at(numbers, owner, bits << place)
    return numbers


def pack_ones(positions: Ints, bits: int) -> Bytes:
    """Write a stream of ``bits`` with ones at ``positions``.

    Example:
        >>> pack_ones(np.array([0, 8]), 9).tolist()
        [1, 1]
    """
    stream = np.zeros(bits, dtype=np.uint8)
    stream[positions] = 1
    return np.packbits(stream, bitorder="little")


def unpack_ones(stream: Bytes, count: int) -> Ints:
    """Find the positions of the first ``count`` ones; fewer when the stream holds fewer.

    Example:
        >>> unpack_ones(np.array([1, 1], dtype=np.uint8), 5).tolist()
        [0, 8]
    """
    return np.flatnonzero(np.unpackbits(stream, bitorder="little"))[:count].astype(np.int64)


def _spread(widths: Ints) -> tuple[Ints, Ints]:
    """Return, for each bit of the stream, the number that owns it and its place in that number."""
    owner = np.repeat(np.arange(len(widths)), widths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths)


# ---------------------------------------------------------------------- Rice parameters; C has the same in csrc/rice.h


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
