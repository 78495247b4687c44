"""Codes of a few bits a value, a level, with a scale for each block of 64.

``Bits8`` and ``Bits4`` scale by a power of two, so that nothing is rounded but the level; ``Bits2`` and ``Sign``, for
whose few levels a power of two is too coarse, by a bfloat16 that is found from the block's mean.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import bytes_of, pad
from gaussiank.ops.dispatch import kernels
from gaussiank.ops.reference import two_level_multiples, two_level_scale

from .value_code import Rounding, ValueCode, power_of_two, saturate, to_grid

BLOCK = 64
"""Values with a scale of their own."""

_LEAST = -126  # smallest exponent of a scale
_BROKEN_EXPONENT = -128  # in the place of one: levels 1 and -1 are infinities, 0 is zero and any other is NaN
_BROKEN_SCALE = 0x7FC0  # one of bfloat16's NaN, so that there is one way to write it
_LARGEST = float(torch.finfo(torch.bfloat16).max)


class LevelCode(ValueCode):
    """A value code of a few bits with a scale for each block; C code runs in its place where it is built."""

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round; the C code takes float32 values and rounds to the nearest."""
        if kernels(values) is not None and values.dtype == torch.float32 and rounding == "nearest":
            return native.round_values(self.name, values)
        return self.round_reference(values, rounding, generator)

    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Encode; rounded values are float32 values, whatever their dtype."""
        if kernels(values) is not None:
            return native.encode_values(self.name, values.float(), slots, self.bytes_for(slots))
        return self.encode_reference(values, slots)

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Decode."""
        if kernels(section) is not None:
            return native.decode_values(self.name, section, count, slots)
        return self.decode_reference(section, count, slots)

    @abstractmethod
    def round_reference(self, values: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
        """Round with plain torch, on any device."""

    @abstractmethod
    def encode_reference(self, values: Tensor, slots: int) -> Tensor:
        """Encode with plain torch, on any device; the specification of the bytes."""

    @abstractmethod
    def decode_reference(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Decode with plain torch, on any device."""


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Return values as ``[blocks, block]``, the last one filled up with zeros."""
    return pad(values, -(-values.numel() // block) * block).view(-1, block)


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
    packed = section[: bytes_of(count * bits), None].long()
    return ((packed >> places) & ((1 << bits) - 1)).flatten()[:count]


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
        return bytes_of(slots * self.bits) - (-slots // BLOCK)

    def round_reference(self, values: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
        """Round to the levels of each block."""
        largest = self.top * 2.0 ** (128 - self.top.bit_length())
        blocks = in_blocks(saturate(values.double(), largest), BLOCK)
        broken, exponents = self._exponents(blocks)
        finite = torch.where(blocks.isfinite(), blocks, 0.0)
        rounded = self._round_at(finite, exponents, rounding, generator)
        if rounding == "nearest":
            finer = self._round_at(finite, (exponents - 1).clamp(min=_LEAST), rounding, generator)
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
        scales = torch.where(broken, _BROKEN_EXPONENT, exponents).to(torch.int8).view(torch.uint8).flatten()
        return torch.cat([pack_levels(levels.flatten()[:slots], self.bits), scales])

    def decode_reference(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Multiply each level by its scale."""
        codes = unpack_levels(section, count, self.bits)
        levels = codes - ((codes >> (self.bits - 1)) << self.bits)  # two's complement
        scales = section[bytes_of(slots * self.bits) :].clone().view(torch.int8)
        exponents = scales.long().repeat_interleave(BLOCK)[:count]
        finite = levels.double() * power_of_two(exponents)
        signals = torch.where(levels.abs() == 1, levels.float() * torch.inf, torch.nan)
        signals = torch.where(levels == 0, 0.0, signals)
        return torch.where(exponents == _BROKEN_EXPONENT, signals, finite.float())

    def _exponents(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each block: whether it is broken, and the least exponent with ``max <= top * 2**e``."""
        largest = blocks.abs().nan_to_num(nan=0.0, posinf=0.0).amax(1, keepdim=True)
        mantissa, exponent = (largest / self.top).frexp()
        exponents = exponent - (mantissa == 0.5).int()  # of a power of two itself
        exponents = torch.where(largest == 0, _LEAST, exponents.clamp(min=_LEAST))
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


@dataclass(frozen=True)
class ScaledBlocks(LevelCode):
    """Write each value as one of a few multiples of its block's scale; none of them is zero.

    With so few levels a power of two is too coarse a scale. A value that is much smaller than the scale rounds to it,
    so that the law of the residual holds within one unit in the last place, and bit for bit where the scale is at most
    twice the value and at least 2**-16 of it. The scale of a block of zeros is zero. A scale of NaN marks a block with
    an infinity or NaN: it carries those alone.

    Attributes:
        bits: bits of a level.
    """

    bits: ClassVar[int]
    stochastic: ClassVar[bool] = False

    def bytes_for(self, slots: int) -> int:
        """Return ``bits`` a value, and 2 bytes a block."""
        return bytes_of(slots * self.bits) - 2 * (-slots // BLOCK)

    @abstractmethod
    def scale_of(self, magnitudes: Tensor, weights: Tensor) -> Tensor:
        """Choose the scale for float64 ``[blocks, 64]`` magnitudes; weights are 1, and 0 where there is no value."""

    @abstractmethod
    def multiples(self, magnitudes: Tensor, scale: Tensor) -> Tensor:
        """Return the multiple of the scale that each magnitude rounds to."""

    @abstractmethod
    def to_codes(self, values: Tensor, scale: Tensor, broken: Tensor) -> Tensor:
        """Turn rounded float64 blocks into int64 codes."""

    @abstractmethod
    def to_values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Turn int64 ``[count]`` codes and their scales, NaN where the block is broken, into values."""

    def round_reference(self, values: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
        """Round to the multiples of each block's scale."""
        blocks = in_blocks(values.double(), BLOCK)
        weights = in_blocks(torch.ones_like(values, dtype=torch.float64), BLOCK)
        magnitudes = torch.where(blocks.isfinite(), blocks.abs(), 0.0)
        scale = self.scale_of(magnitudes, weights).clamp(max=_LARGEST / 2).bfloat16().double()
        levels = torch.where(blocks < 0, -1.0, 1.0) * scale * self.multiples(magnitudes, scale) + 0.0
        broken = ~blocks.isfinite().all(1, keepdim=True)
        rounded = torch.where(broken, self.signals(blocks), levels)
        return rounded.flatten()[: values.numel()].to(values.dtype)

    @abstractmethod
    def signals(self, blocks: Tensor) -> Tensor:
        """Return what infinities and NaN become; finite values become zero."""

    def encode_reference(self, values: Tensor, slots: int) -> Tensor:
        """Write the levels, then the scales."""
        blocks = in_blocks(pad(values.double(), slots), BLOCK)
        broken = ~blocks.isfinite().all(1, keepdim=True)
        magnitudes = torch.where(blocks == 0, torch.inf, blocks.abs())  # of a rounded block: its unused slots alone
        least = magnitudes.amin(1, keepdim=True)
        scale = torch.where(least.isinf(), 0.0, least)
        codes = self.to_codes(blocks, scale, broken).flatten()[:slots]
        scales = torch.where(broken, _BROKEN_SCALE, scale.bfloat16().view(torch.int16)).flatten().view(torch.uint8)
        return torch.cat([pack_levels(codes, self.bits), scales])

    def decode_reference(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Multiply each level by its scale."""
        codes = unpack_levels(section, count, self.bits)
        scales = section[bytes_of(slots * self.bits) :].clone().view(torch.bfloat16).float()
        return self.to_values(codes, scales.repeat_interleave(BLOCK)[:count])


@dataclass(frozen=True)
class Bits2(ScaledBlocks):
    """Write plus or minus one scale, or plus or minus two.

    The scale is the least-squares fit to the block, by two rounds of Lloyd's method from three quarters of the mean.
    """

    name: ClassVar[str] = "2bit"
    number: ClassVar[int] = 6
    bits: ClassVar[int] = 2
    least_bits: ClassVar[int] = 2

    def scale_of(self, magnitudes: Tensor, weights: Tensor) -> Tensor:
        """Fit the scale."""
        return two_level_scale(magnitudes, weights)

    def multiples(self, magnitudes: Tensor, scale: Tensor) -> Tensor:
        """Two from one and a half scales on."""
        return two_level_multiples(magnitudes, scale)

    def signals(self, blocks: Tensor) -> Tensor:
        """Infinities and NaN stay."""
        return torch.where(blocks.isnan(), torch.nan, torch.where(blocks.isinf(), blocks, 0.0))

    def to_codes(self, values: Tensor, scale: Tensor, broken: Tensor) -> Tensor:
        """Bit 0: negative. Bit 1: two scales. In a broken block 0 is zero, 1 and 2 are the infinities, 3 is NaN."""
        codes = (values < 0).long() | ((values.abs() > scale).long() << 1)
        signals = torch.where(values.isnan(), 3, torch.where(values.isinf(), torch.where(values > 0, 1, 2), 0))
        return torch.where(broken, signals, codes)

    def to_values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Read the bits."""
        signed = torch.where(codes & 1 == 1, -scale, scale)
        values = torch.where(codes >= 2, 2 * signed, signed) + 0.0
        signals = torch.zeros_like(values)  # no table of them: it would be copied to an accelerator
        for code, signal in ((1, torch.inf), (2, -torch.inf), (3, torch.nan)):
            signals = torch.where(codes == code, signal, signals)
        return torch.where(scale.isnan(), signals, values)


@dataclass(frozen=True)
class Sign(ScaledBlocks):
    """Write the sign of each value; all have their block's mean magnitude.

    Infinities and NaN all become NaN.

    Source: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", the scaled sign.
    Differs: a scale for each 64 values of a selection, rounded to bfloat16.
    """

    name: ClassVar[str] = "sign"
    number: ClassVar[int] = 7
    bits: ClassVar[int] = 1

    def scale_of(self, magnitudes: Tensor, weights: Tensor) -> Tensor:
        """Return the mean magnitude."""
        return magnitudes.sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def multiples(self, magnitudes: Tensor, scale: Tensor) -> Tensor:
        """One, for all."""
        return torch.ones_like(magnitudes)

    def signals(self, blocks: Tensor) -> Tensor:
        """Infinities become NaN too: one bit tells no more."""
        return torch.where(blocks.isfinite(), 0.0, torch.nan)

    def to_codes(self, values: Tensor, scale: Tensor, broken: Tensor) -> Tensor:
        """1 for negative; in a broken block, 1 for NaN and 0 for zero."""
        return torch.where(broken, values.isnan(), values < 0).long()

    def to_values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Read the bit."""
        values = torch.where(codes == 1, -scale, scale) + 0.0
        return torch.where(scale.isnan() & (codes == 0), 0.0, values)
