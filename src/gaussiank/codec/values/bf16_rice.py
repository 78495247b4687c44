"""bfloat16 in fewer bits: the values of ``bf16``, none changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .bf16 import BF16
from .magnitudes import RiceMagnitudes
from .value_code import Rounding


@dataclass(frozen=True)
class BF16Rice(RiceMagnitudes):
    """Write what ``bf16`` writes in 6 to 7 bits a value of a real selection; relative error at most 2**-8."""

    name: ClassVar[str] = "bf16-rice"
    number: ClassVar[int] = 8
    drop: ClassVar[int] = 0
    usual_bits: ClassVar[float] = 7.0
    plain: ClassVar[str | None] = "bf16"

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round as ``bf16`` does."""
        return BF16().round(values, rounding, generator)
