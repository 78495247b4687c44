"""The Rice code that earlier releases wrote: it is read for ever, and written by none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gaussiank.codec.bits import Bytes, bytes_of, pack, pack_ones, unpack, unpack_ones
from gaussiank.codec.faults import Fault, error
from gaussiank.codec.ricing import BLOCK, blocks_of, choose, most_bits, spread

from .index_code import IndexCode, Indices

PARAMETER_BITS = 5


@dataclass(frozen=True)
class UnaryRice(IndexCode):
    """Read each gap as its low r bits and, in unary, the rest; with a parameter r for each block of 64 gaps.

    Three streams follow each other, each filled up to a byte: the parameters, the low bits, the unary quotients. The
    reference alone does it, whatever is built.

    Source: Rice 1979, "Some practical universal noiseless coding techniques".
    Differs: a parameter for each block, and the streams apart.
    """

    name: ClassVar[str] = "rice"
    number: ClassVar[int] = 1
    varies: ClassVar[bool] = True
    compiled: ClassVar[bool] = False

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the bound: the best single parameter on the mean gap."""
        return bytes_of(blocks_of(count) * PARAMETER_BITS) + most_bits(count, numel) // 8 + 2

    def least_bytes(self, count: int, numel: int) -> int:
        """Return parameters, and a bit for each index."""
        return bytes_of(blocks_of(count) * PARAMETER_BITS) + bytes_of(count)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Choose parameters, then write the streams."""
        places = np.concatenate(([-1], indices)).astype(np.int64)
        gaps = places[1:] - places[:-1] - 1
        parameters, _ = choose(gaps)
        r = spread(parameters, len(gaps))
        positions = np.cumsum((gaps >> r) + 1) - 1
        head = pack(parameters, np.full(len(parameters), PARAMETER_BITS))
        return np.concatenate([head, pack(gaps, r), pack_ones(positions, int(positions[-1]) + 1)])

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Read parameters, then the low bits and quotients that they say."""
        head = bytes_of(blocks_of(count) * PARAMETER_BITS)
        parameters = unpack(section[:head], np.full(blocks_of(count), PARAMETER_BITS))
        r = spread(parameters, count)
        low = head + bytes_of(int(r.sum()))
        positions = unpack_ones(section[low:], count)
        if low > len(section) or len(positions) < count:
            raise error(Fault.TRUNCATED)
        quotients = np.diff(positions, prepend=-1) - 1
        starts = np.arange(0, count, BLOCK)
        if bool((np.add.reduceat(quotients, starts) > (numel >> parameters)).any()):  # else sums could overflow
            raise error(Fault.RANGE)
        if bytes_of(int(positions[-1]) + 1) != len(section) - low:
            raise error(Fault.SURPLUS)
        return np.cumsum((quotients << r) + unpack(section[head:low], r) + 1) - 1
