"""2-bit values: a sign, and one or two scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .scales import ScaledBlocks

_REFINED = 2


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
        signals = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float32, device=codes.device)
        return torch.where(scale.isnan(), signals[codes], values)
