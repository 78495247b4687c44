"""Rice or exponential Golomb codes of index gaps, as each block of 64 is shorter: few bits where indices cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gaussiank.codec.bits import (
    BLOCK,
    Bytes,
    Ints,
    blocks_of,
    bytes_of,
    choose,
    most_bits,
    pack,
    pack_ones,
    spread,
    unpack,
    unpack_ones,
)
from gaussiank.codec.native import Fault, error

from .index_code import IndexCode, Indices

HEAD_BITS = 6  # of a block: 5 of its parameter, then its kind
GAMMA = 32  # the bit that says the second kind
MOST = 31  # low bits of a gap
UNARY_HEAD_BITS = 5  # in the code of earlier releases: the parameter alone


@dataclass(frozen=True)
class Rice(IndexCode):
    """Write each gap as its low r bits and the rest in unary, or in Elias gamma, as each block of 64 gaps is shorter.

    Gaps of a real selection differ by orders of magnitude within a block, dense rows beside empty ones: unary then pays
    for the few long ones, gamma only for their logarithms. Random positions are shorter in unary, by half a bit.
    Zeros and ones stand apart from the low bits, which decodes faster than mixed. The two streams run towards each
    other, from the head of the section on and from its end back, so that both begin where a reader knows.

    Source: Rice 1979, "Some practical universal noiseless coding techniques"; Elias 1975, "Universal codeword sets and
    representations of the integers" (gamma); Teuhola 1978, "A compression method for clustered bit-vectors"
    (exponential Golomb). Differs: kind and parameter for each block, and the streams apart.
    """

    name: ClassVar[str] = "rice"
    number: ClassVar[int] = 5
    varies: ClassVar[bool] = True

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the bound: the best single parameter on the mean gap, with the rest in unary."""
        return bytes_of(blocks_of(count) * HEAD_BITS) + most_bits(count, numel) // 8 + 2

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the heads of blocks, and a bit for each index."""
        return bytes_of(blocks_of(count) * HEAD_BITS) + bytes_of(count)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Choose kinds and parameters, then write the streams."""
        places = np.concatenate(([-1], indices)).astype(np.int64)
        gaps = places[1:] - places[:-1] - 1
        parameters, gamma = _choose(gaps)
        r, by_gamma = spread(parameters, len(gaps)), spread(gamma, len(gaps))
        numbers = np.where(by_gamma, gaps + (1 << r), gaps)
        widths = np.where(by_gamma, _log(numbers), r)
        ends = np.cumsum(np.where(by_gamma, widths - r, gaps >> r) + 1)
        head = pack(parameters + GAMMA * gamma, np.full(len(parameters), HEAD_BITS))
        return np.concatenate([head, pack(numbers, widths), pack_ones(ends - 1, int(ends[-1]))[::-1]])

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Read the heads, then the zeros and ones from the end back, then the low bits that both say."""
        start = bytes_of(blocks_of(count) * HEAD_BITS)
        heads = unpack(section[:start], np.full(blocks_of(count), HEAD_BITS))
        parameters, gamma = heads % GAMMA, heads >= GAMMA
        r, by_gamma = spread(parameters, count), spread(gamma, count)
        positions = unpack_ones(section[start:][::-1], count)
        if len(positions) < count:
            raise error(Fault.TRUNCATED)
        zeros = np.diff(positions, prepend=-1) - 1
        sums = np.add.reduceat(zeros, np.arange(0, count, BLOCK))
        if bool((by_gamma & (zeros > MOST - r)).any()) or bool((~gamma & (sums > (numel >> parameters))).any()):
            raise error(Fault.RANGE)  # else numbers could overflow
        widths = np.where(by_gamma, zeros + r, r)
        used = bytes_of(int(widths.sum())) + bytes_of(int(positions[-1]) + 1)
        if used != len(section) - start:
            raise error(Fault.TRUNCATED if used > len(section) - start else Fault.SURPLUS)
        high = np.where(by_gamma, (1 << widths) - (1 << r), zeros << r)
        return np.cumsum(high + unpack(section[start:], widths) + 1) - 1


def _choose(gaps: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Choose parameter and kind of each block, as the C code does.

    The mean logarithm is near the best parameter for gamma, which is tried only where that mean says that it may be
    shorter: one more than it, or else less as long as that is shorter.
    """
    starts = np.arange(0, len(gaps), BLOCK)
    sizes = np.minimum(BLOCK, len(gaps) - starts)
    parameters, quotients = choose(gaps)
    bits = quotients + sizes * parameters

    def bits_with(r: Ints) -> Ints:
        logs = np.add.reduceat(_log(gaps + (1 << spread(r, len(gaps)))), starts)
        return np.asarray(2 * logs - sizes * r, dtype=np.int64)

    logs = np.add.reduceat(_log(gaps + 1), starts)
    best = logs // sizes
    least, more = bits_with(best), bits_with(best + 1)
    tried = (bits > logs + sizes) & (least <= bits + sizes // 4)
    sinking = more >= least
    best, least = np.where(sinking, best, best + 1), np.minimum(least, more)
    while bool((sinking := sinking & (best > 0)).any()):
        below = bits_with(np.maximum(best - 1, 0))
        sinking &= below < least
        best, least = np.where(sinking, best - 1, best), np.where(sinking, below, least)
    gamma = tried & (least < bits)
    return np.where(gamma, best, parameters), gamma


def _log(numbers: Ints) -> Ints:
    """Return the logarithms of numbers from 1 on, rounded down."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1


@dataclass(frozen=True)
class UnaryRice(IndexCode):
    """Read each gap as its low r bits and, in unary, the rest; with a parameter r for each block of 64 gaps.

    Earlier releases wrote it: it is read for ever, and written by none. Three streams follow each other, each filled up
    to a byte: the parameters, the low bits, the unary quotients. The reference alone does it, whatever is built.

    Source: Rice 1979, "Some practical universal noiseless coding techniques".
    Differs: a parameter for each block, and the streams apart.
    """

    name: ClassVar[str] = "rice"
    number: ClassVar[int] = 1
    varies: ClassVar[bool] = True
    compiled: ClassVar[bool] = False

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the bound: the best single parameter on the mean gap."""
        return bytes_of(blocks_of(count) * UNARY_HEAD_BITS) + most_bits(count, numel) // 8 + 2

    def least_bytes(self, count: int, numel: int) -> int:
        """Return parameters, and a bit for each index."""
        return bytes_of(blocks_of(count) * UNARY_HEAD_BITS) + bytes_of(count)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Choose parameters, then write the streams."""
        places = np.concatenate(([-1], indices)).astype(np.int64)
        gaps = places[1:] - places[:-1] - 1
        parameters, _ = choose(gaps)
        r = spread(parameters, len(gaps))
        positions = np.cumsum((gaps >> r) + 1) - 1
        head = pack(parameters, np.full(len(parameters), UNARY_HEAD_BITS))
        return np.concatenate([head, pack(gaps, r), pack_ones(positions, int(positions[-1]) + 1)])

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Read parameters, then the low bits and quotients that they say."""
        head = bytes_of(blocks_of(count) * UNARY_HEAD_BITS)
        parameters = unpack(section[:head], np.full(blocks_of(count), UNARY_HEAD_BITS))
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
