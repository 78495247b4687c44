"""8-bit values: 255 even levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .blocks import PowerBlocks


@dataclass(frozen=True)
class Bits8(PowerBlocks):
    """Write levels -127 to 127; the error is at most 1/127 of the block's largest magnitude."""

    name: ClassVar[str] = "8bit"
    number: ClassVar[int] = 4
    bits: ClassVar[int] = 8
    top: ClassVar[int] = 127

    def spacing(self, magnitudes: Tensor) -> Tensor | float:
        """Levels are even."""
        return 1.0

    def to_codes(self, levels: Tensor) -> Tensor:
        """Two's complement."""
        return levels

    def to_levels(self, codes: Tensor) -> Tensor:
        """Two's complement."""
        return codes.to(torch.uint8).view(torch.int8).long()
