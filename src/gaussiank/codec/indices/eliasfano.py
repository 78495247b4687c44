"""Elias-Fano: a size that count and numel alone decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gaussiank.codec.bits import Bytes, bytes_of, pack, pack_ones, unpack, unpack_ones
from gaussiank.codec.native import Fault, error

from .index_code import IndexCode, Indices


@dataclass(frozen=True)
class EliasFano(IndexCode):
    """Write the low bits of each index as they are, and the high bits as gaps between ones.

    With ``w = floor(log2(numel / count))`` low bits, ``w + 2`` bits an index at most, wherever the indices lie: half a
    bit more than random positions need, and no less where they cluster.

    Source: Elias 1974, "Efficient storage and retrieval by content and address of static files".
    """

    name: ClassVar[str] = "eliasfano"
    number: ClassVar[int] = 2

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the size itself, and a byte where both streams round up at worst.

        The bits of both together grow with ``count`` and with ``numel``, also where the width changes; their bytes,
        each stream filled up for itself, do not.
        """
        return (count * _width(count, numel) + _high_bits(count, numel) + 14) // 8

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return sum(_sizes(count, numel)) if count else 0

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Write low bits, then a one at ``(index >> width) + i`` for index number i."""
        wide, width = indices.astype(np.int64), _width(len(indices), numel)
        positions = (wide >> width) + np.arange(len(wide))
        return np.concatenate(
            [pack(wide, np.full(len(wide), width)), pack_ones(positions, _high_bits(len(wide), numel))]
        )

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Find the ones, and put the low bits under them."""
        low, high = _sizes(count, numel)
        if len(section) != low + high:
            raise error(Fault.TRUNCATED if len(section) < low + high else Fault.SURPLUS)
        width = _width(count, numel)
        positions = unpack_ones(section[low:], count)
        if len(positions) < count:
            raise error(Fault.TRUNCATED)
        return ((positions - np.arange(count)) << width) + unpack(section[:low], np.full(count, width))


def _width(count: int, numel: int) -> int:
    return (numel // count).bit_length() - 1


def _high_bits(count: int, numel: int) -> int:
    return count + ((numel - 1) >> _width(count, numel))


def _sizes(count: int, numel: int) -> tuple[int, int]:
    return bytes_of(count * _width(count, numel)), bytes_of(_high_bits(count, numel))
