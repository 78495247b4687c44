"""Rice codes of index gaps, with a parameter for each block of 64: small where indices cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gaussiank.codec.bits import Bytes, bytes_of, pack, pack_ones, unpack, unpack_ones
from gaussiank.codec.faults import Fault, error

from .index_code import IndexCode, Indices

BLOCK = 64
PARAMETER_BITS = 5


@dataclass(frozen=True)
class Rice(IndexCode):
    """Write each gap as its low r bits and, in unary, the rest; r is chosen for each block of 64 gaps.

    Three streams follow each other, each filled up to a byte: the parameters, the low bits, the unary quotients. Apart
    from each other they decode faster than mixed. Real selections cluster, so that most blocks have short gaps.

    Source: Rice 1979, "Some practical universal noiseless coding techniques".
    Differs: a parameter for each block, and the streams apart.
    """

    name: ClassVar[str] = "rice"
    number: ClassVar[int] = 1
    varies: ClassVar[bool] = True

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the bound: the best single parameter on the mean gap.

        Each block's size is at most the minimum over r of ``n (r + 1) + sum(gaps) / 2**r``, which is concave in the
        sum: so no distribution of gaps over blocks is worse than the even one.
        """
        rest = numel - count
        r = (rest // (2 * count)).bit_length() if count else 0  # the least: halving the rest saves less than count
        bits = count * (r + 1) + (rest >> r)
        return bytes_of(_blocks(count) * PARAMETER_BITS) + bits // 8 + 2

    def least_bytes(self, count: int, numel: int) -> int:
        """Return parameters, and a bit for each index."""
        return bytes_of(_blocks(count) * PARAMETER_BITS) + bytes_of(count)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Choose parameters, then write the streams."""
        places = np.concatenate(([-1], indices)).astype(np.int64)
        gaps = places[1:] - places[:-1] - 1
        parameters = _choose(gaps)
        r = np.repeat(parameters, BLOCK)[: len(gaps)]
        positions = np.cumsum((gaps >> r) + 1) - 1
        head = pack(parameters, np.full(len(parameters), PARAMETER_BITS))
        return np.concatenate([head, pack(gaps, r), pack_ones(positions, int(positions[-1]) + 1)])

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Read parameters, then the low bits and quotients that they say."""
        head = bytes_of(_blocks(count) * PARAMETER_BITS)
        parameters = unpack(section[:head], np.full(_blocks(count), PARAMETER_BITS))
        r = np.repeat(parameters, BLOCK)[:count]
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


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _choose(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose a parameter for each block: the logarithm of its mean gap, or one or two less when that is shorter."""
    starts = np.arange(0, len(gaps), BLOCK)
    sizes = np.minimum(BLOCK, len(gaps) - starts)
    mean = np.add.reduceat(gaps, starts) // sizes
    top = np.maximum(np.frexp(mean.astype(np.float64))[1].astype(np.int64) - 1, 0)
    best, best_bits = top, np.full(len(starts), np.iinfo(np.int64).max)
    for less in range(3):
        parameters = np.maximum(top - less, 0)
        quotients = gaps >> np.repeat(parameters, BLOCK)[: len(gaps)]
        bits = sizes * parameters + np.add.reduceat(quotients, starts)
        best = np.where(bits < best_bits, parameters, best)
        best_bits = np.minimum(bits, best_bits)
    return best
