"""Levels of 8 or 4 bits, and a scale for each block of 64 values that is a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec.bits import pad

from .value_code import LevelCode, Rounding, power_of_two, saturate, to_grid

BLOCK = 64
LEAST = -126  # smallest exponent of a scale
BROKEN = -128  # in the place of an exponent: levels 1 and -1 are infinities, 0 is zero and any other is NaN


@dataclass(frozen=True)
class PowerBlocks(LevelCode):
    """Write each value as ``level * 2**e``: an even level in [-top, top], and e for each block of 64.

    ``round`` takes the least e that lets the largest magnitude fit, or one less where that, with the largest ones cut
    off, has the smaller squared error: with few levels a finer grid for the many is worth it. Multiplying by a power of
    two is exact, and so is the rounding error: the law of the residual holds bit for bit.
    A block with an infinity or NaN carries those alone; its finite values round to zero and stay in the residual.

    Attributes:
        bits: bits of a level.
        top: largest level.
    """

    bits: ClassVar[int]
    top: ClassVar[int]

    def bytes_for(self, slots: int) -> int:
        """Return ``bits`` a value, and a byte a block."""
        return level_bytes(slots, self.bits) - (-slots // BLOCK)

    def round_reference(self, values: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
        """Round to the levels of each block."""
        largest = self.top * 2.0 ** (128 - self.top.bit_length())
        blocks = in_blocks(saturate(values.double(), largest), BLOCK)
        broken, exponents = self._exponents(blocks)
        finite = torch.where(blocks.isfinite(), blocks, 0.0)
        rounded = self._round_at(finite, exponents, rounding, generator)
        if rounding == "nearest":
            finer = self._round_at(finite, (exponents - 1).clamp(min=LEAST), rounding, generator)
            better = _squares(finer - finite) < _squares(rounded - finite)
            rounded = torch.where(better, finer, rounded)
        signals = torch.where(blocks.isnan(), torch.nan, torch.where(blocks.isinf(), blocks, 0.0))
        return torch.where(broken, signals, rounded).flatten()[: values.numel()].to(values.dtype)

    def _round_at(
        self, values: Tensor, exponents: Tensor, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        scale = power_of_two(exponents)
        return to_grid(values / scale, rounding, generator).clamp(-self.top, self.top) * scale + 0.0  # no -0.0

    def encode_reference(self, values: Tensor, slots: int) -> Tensor:
        """Write the levels, then the exponents."""
        blocks = in_blocks(pad(values.double(), slots), BLOCK)
        broken, exponents = self._exponents(blocks)
        signals = torch.where(blocks.isnan(), 2.0, blocks.clamp(-1, 1).trunc())
        levels = torch.where(broken, signals, blocks / power_of_two(exponents)).long()
        scales = torch.where(broken, BROKEN, exponents).to(torch.int8).view(torch.uint8).flatten()
        return torch.cat([pack_levels(levels.flatten()[:slots], self.bits), scales])

    def decode_reference(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Multiply each level by its scale."""
        codes = unpack_levels(section, count, self.bits)
        levels = codes - ((codes >> (self.bits - 1)) << self.bits)  # two's complement
        scales = section[level_bytes(slots, self.bits) :].clone().view(torch.int8)
        exponents = scales.long().repeat_interleave(BLOCK)[:count]
        finite = levels.double() * power_of_two(exponents)
        signals = torch.where(levels.abs() == 1, levels.float() * torch.inf, torch.nan)
        signals = torch.where(levels == 0, 0.0, signals)
        return torch.where(exponents == BROKEN, signals, finite.float())

    def _exponents(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each block: whether it is broken, and the least exponent with ``max <= top * 2**e``."""
        largest = blocks.abs().nan_to_num(nan=0.0, posinf=0.0).amax(1, keepdim=True)
        mantissa, exponent = (largest / self.top).frexp()
        exponents = exponent - (mantissa == 0.5).int()  # of a power of two itself
        exponents = torch.where(largest == 0, LEAST, exponents.clamp(min=LEAST))
        return ~blocks.isfinite().all(1, keepdim=True), exponents


@dataclass(frozen=True)
class Bits8(PowerBlocks):
    """Write levels -127 to 127; the error is at most 1/127 of the block's largest magnitude."""

    name: ClassVar[str] = "8bit"
    number: ClassVar[int] = 4
    bits: ClassVar[int] = 8
    least_bits: ClassVar[int] = 8
    top: ClassVar[int] = 127


@dataclass(frozen=True)
class Bits4(PowerBlocks):
    """Write levels -7 to 7.

    On real selections even levels, with the exponent chosen for the least error, lose less than the small floats of the
    E2M1 format: 6 to 8 % of the norm against 8 to 12 %. The entries of a selection differ little.
    """

    name: ClassVar[str] = "4bit"
    number: ClassVar[int] = 5
    bits: ClassVar[int] = 4
    least_bits: ClassVar[int] = 4
    top: ClassVar[int] = 7


def _squares(blocks: Tensor) -> Tensor:
    return blocks.square().sum(1, keepdim=True)


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Return values as ``[blocks, block]``, the last one filled up with zeros."""
    return pad(values, -(-values.numel() // block) * block).view(-1, block)


def level_bytes(slots: int, bits: int) -> int:
    """Return the bytes of ``slots`` levels."""
    return (slots * bits + 7) // 8


def pack_levels(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of 1, 2, 4 or 8 bits into bytes, the first in the lowest bits.

    Example:
        >>> pack_levels(torch.tensor([1, 2, 15]), 4).tolist()
        [33, 15]
    """
    each = 8 // bits
    groups = in_blocks(codes & ((1 << bits) - 1), each)
    return (groups << (torch.arange(each, device=codes.device) * bits)).sum(1).to(torch.uint8)


def unpack_levels(section: Tensor, count: int, bits: int) -> Tensor:
    """Unpack ``count`` codes from the front of a section, as int64.

    Example:
        >>> unpack_levels(torch.tensor([33, 15], dtype=torch.uint8), 3, 4).tolist()
        [1, 2, 15]
    """
    places = torch.arange(8 // bits, device=section.device) * bits
    packed = section[: level_bytes(count, bits), None].long()
    return ((packed >> places) & ((1 << bits) - 1)).flatten()[:count]
