"""Streams of bits for the reference codes, lowest bit of each byte first; clear, not fast."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


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
