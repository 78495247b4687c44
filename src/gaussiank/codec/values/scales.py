"""Levels of one or two bits, and a bfloat16 scale for each block of 64 values, found from the block's mean."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec.bits import pad

from .blocks import in_blocks, level_bytes, pack_levels, unpack_levels
from .value_code import LevelCode, Rounding

BLOCK = 64
BROKEN = 0x7FC0
"""One of bfloat16's NaN, so that there is one way to write it."""

_REFINED = 2
LARGEST = float(torch.finfo(torch.bfloat16).max)


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
        return level_bytes(slots, self.bits) - 2 * (-slots // BLOCK)

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
        scale = self.scale_of(magnitudes, weights).clamp(max=LARGEST / 2).bfloat16().double()
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
        scales = torch.where(broken, BROKEN, scale.bfloat16().view(torch.int16)).flatten().view(torch.uint8)
        return torch.cat([pack_levels(codes, self.bits), scales])

    def decode_reference(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Multiply each level by its scale."""
        codes = unpack_levels(section, count, self.bits)
        scales = section[level_bytes(slots, self.bits) :].clone().view(torch.bfloat16).float()
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
        """Fit the scale: sum(magnitude * multiple) / sum(multiple**2), twice."""
        scale = 0.75 * magnitudes.sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        for _ in range(_REFINED):
            multiples = self.multiples(magnitudes, scale) * weights
            scale = (magnitudes * multiples).sum(1, keepdim=True) / multiples.square().sum(1, keepdim=True)
        return scale

    def multiples(self, magnitudes: Tensor, scale: Tensor) -> Tensor:
        """Two from one and a half scales on."""
        return torch.where(magnitudes >= 1.5 * scale, 2.0, 1.0).double()

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
