"""Sign and scale: one bit a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .scales import ScaledBlocks


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
