"""Values as they are: float32, or float64 for float64 gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec.bits import pad

from .value_code import Rounding, ValueCode


@dataclass(frozen=True)
class FP32(ValueCode):
    """Write float32 values bit for bit."""

    name: ClassVar[str] = "fp32"
    least_bits: ClassVar[int] = 32
    number: ClassVar[int] = 0
    exact: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False

    def bytes_for(self, slots: int) -> int:
        """Return 4 or 8 bytes a value."""
        return self.dtype.itemsize * slots

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Copy."""
        return values.clone()

    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Copy."""
        return pad(values.to(self.dtype), slots).view(torch.uint8)

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Copy."""
        return section[: self.bytes_for(count)].clone().view(self.dtype)


@dataclass(frozen=True)
class FP64(FP32):
    """Write float64 values bit for bit."""

    name: ClassVar[str] = "fp64"
    number: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float64
