"""bfloat16 in fewer bits: what was selected lies close above a threshold, and so do the bits of its floats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import (
    BLOCK,
    Bytes,
    Ints,
    blocks_of,
    bytes_of,
    choose,
    pack,
    pack_ones,
    spread,
    unpack,
    unpack_ones,
)
from gaussiank.codec.native import Fault, error
from gaussiank.ops.dispatch import kernels

from .floats import BF16
from .value_code import Rounding, ValueCode

HEAD_BYTES = 6  # size of the section, smallest magnitude
PARAMETER_BITS = 4
MAGNITUDE_BITS = 15
USUAL_BITS = 7.0  # of a value of a real selection, as measured at densities of 0.0001 to 0.01 (results/wire.md)
PLAIN = 15  # parameter of a block whose numbers are written as they are
NAN = 0x7FC0


@dataclass(frozen=True)
class BF16Rice(ValueCode):
    """Write the values of ``bf16``, none changed: signs, and in Rice codes what magnitudes exceed the least one by.

    The bits of a bfloat16 without its sign are a whole number that grows with the magnitude, about with its logarithm.
    What Top_k selects with error feedback lies within a binade or two above the threshold, most of it near: a mean of 5
    bits in place of 15. Blocks of 64 have their own parameter; one whose numbers are not short is written as it is, so
    that no section is longer than the plain one by more than half a bit for 8 values.

    Source: Rice 1979, "Some practical universal noiseless coding techniques", as for indices.
    """

    name: ClassVar[str] = "bf16-rice"
    number: ClassVar[int] = 8
    least_bits: ClassVar[int] = 2
    varies: ClassVar[bool] = True
    plain: ClassVar[str | None] = "bf16"

    def bytes_for(self, slots: int) -> int:
        """Return the most: magnitudes as they are, signs, and a parameter for each block."""
        return (
            (HEAD_BYTES + bytes_of(PARAMETER_BITS * blocks_of(slots)) + bytes_of(slots * (MAGNITUDE_BITS + 1)) + 1)
            if slots
            else 0
        )

    def usual_bytes(self, slots: int) -> int:
        """Return what real selections take, and no more than any can."""
        return min(self.bytes_for(slots), HEAD_BYTES + math.ceil(slots * USUAL_BITS / 8)) if slots else 0

    def size_of(self, section: Tensor, count: int, slots: int) -> int:
        """Read the size: the first four bytes.

        Raises:
            ValueError: so few bytes cannot hold so many values.
        """
        size = int.from_bytes(bytes(section[:4].tolist()), "little") if count else 0
        if count and size < HEAD_BYTES + bytes_of(PARAMETER_BITS * blocks_of(count)) + bytes_of(
            self.least_bits * count
        ):
            raise error(Fault.TRUNCATED)
        return size

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round as ``bf16`` does."""
        return BF16().round(values, rounding, generator)

    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Encode; nothing is sent for unused slots."""
        if kernels(values) is not None:
            return native.pack_values(self.name, values.float(), self.bytes_for(values.numel()))
        return torch.from_numpy(self.encode_reference(values.float().numpy()))

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Decode."""
        if kernels(section) is not None:
            return native.unpack_values(self.name, section, count)
        return torch.from_numpy(self.decode_reference(section.numpy(), count))

    def encode_reference(self, values: NDArray[np.float32]) -> Bytes:
        """Encode on the CPU; the specification of the bytes."""
        count = len(values)
        if count == 0:
            return np.empty(0, dtype=np.uint8)
        halves = np.where(np.isnan(values), NAN, values.view(np.uint32) >> 16).astype(np.int64)
        magnitudes = halves & 0x7FFF
        base = int(magnitudes.min())
        numbers = magnitudes - base
        parameters, quotients = choose(numbers)
        sizes = np.minimum(BLOCK, count - np.arange(0, count, BLOCK))
        plain = quotients + sizes * (parameters + 1) >= sizes * MAGNITUDE_BITS
        parameters = np.where(plain, PLAIN, parameters)
        head = pack(parameters, np.full(len(parameters), PARAMETER_BITS))
        coded = spread(parameters, count) != PLAIN
        r = np.where(coded, spread(parameters, count), MAGNITUDE_BITS)
        low = pack((numbers & ((1 << r) - 1)) | (halves >> 15) << r, r + 1)
        ends = np.cumsum((numbers[coded] >> r[coded]) + 1)
        unary = pack_ones(ends - 1, int(ends[-1]) if len(ends) else 0)
        size = HEAD_BYTES + len(head) + len(low) + len(unary)
        start = np.frombuffer(size.to_bytes(4, "little") + base.to_bytes(2, "little"), dtype=np.uint8)
        return np.concatenate([start, head, low, unary])

    def decode_reference(self, section: Bytes, count: int) -> NDArray[np.float32]:
        """Decode on the CPU.

        Raises:
            ValueError: the section is damaged.
        """
        if count == 0 and len(section) == 0:
            return np.empty(0, dtype=np.float32)
        low = HEAD_BYTES + bytes_of(PARAMETER_BITS * blocks_of(count))
        if count == 0 or low > len(section) or int.from_bytes(section[:4].tobytes(), "little") != len(section):
            raise error(Fault.TRUNCATED if count else Fault.SURPLUS)
        parameters = unpack(section[HEAD_BYTES:low], np.full(blocks_of(count), PARAMETER_BITS))
        coded = spread(parameters, count) != PLAIN
        r = np.where(coded, spread(parameters, count), MAGNITUDE_BITS)
        unary = low + bytes_of(int((r + 1).sum()))
        if unary > len(section):
            raise error(Fault.TRUNCATED)
        quotients = _quotients(section[unary:], coded)
        words = unpack(section[low:unary], r + 1)
        base = int.from_bytes(section[4:HEAD_BYTES].tobytes(), "little")
        magnitudes = base + (words & ((1 << r) - 1)) + (quotients << r)
        if bool((magnitudes >> MAGNITUDE_BITS).any()):
            raise error(Fault.LEVEL)
        bits = magnitudes << 16 | (words >> r) << 31
        return bits.astype(np.uint32).view(np.float32)


def _quotients(stream: Bytes, coded: NDArray[np.bool_]) -> Ints:
    """Read the quotients of the numbers that have one; the stream must hold no more."""
    count = int(coded.sum())
    positions = unpack_ones(stream, count)
    if len(positions) < count:
        raise error(Fault.TRUNCATED)
    if bytes_of(int(positions[-1]) + 1 if count else 0) != len(stream):
        raise error(Fault.SURPLUS)
    quotients = np.zeros(len(coded), dtype=np.int64)
    quotients[coded] = np.diff(positions, prepend=-1) - 1
    return quotients
