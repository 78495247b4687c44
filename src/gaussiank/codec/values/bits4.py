"""4-bit values: small floats, because the entries of a Top_k selection differ by factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .blocks import PowerBlocks

MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class Bits4(PowerBlocks):
    """Write a sign and one of the magnitudes 0, 1, 2, 3, 4, 6, 8, 12: twice those of the E2M1 format.

    Even levels would spend half of them on magnitudes that a selection hardly holds.
    """

    name: ClassVar[str] = "4bit"
    number: ClassVar[int] = 5
    bits: ClassVar[int] = 4
    top: ClassVar[int] = 12

    def spacing(self, magnitudes: Tensor) -> Tensor | float:
        """1 below 4, 2 below 8, 4 above."""
        return torch.where(magnitudes < 4, 1.0, torch.where(magnitudes < 8, 2.0, 4.0)).double()

    def to_codes(self, levels: Tensor) -> Tensor:
        """Sign in the highest bit, number of the magnitude in the others."""
        numbers = torch.bucketize(levels.abs(), torch.tensor(MAGNITUDES, device=levels.device))
        return numbers | ((levels < 0).long() << 3)

    def to_levels(self, codes: Tensor) -> Tensor:
        """Look the magnitude up."""
        magnitudes = torch.tensor(MAGNITUDES, device=codes.device)[codes & 7]
        return torch.where(codes >= 8, -magnitudes, magnitudes)
