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
BROKEN = torch.tensor(0x7FC0, dtype=torch.int16, device="cpu")
"""One of bfloat16's NaN, so that there is one way to write it."""

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
