"""bfloat16: the upper half of a float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import pad

from .value_code import Rounding, ValueCode, power_of_two, saturate, to_grid

NAN = torch.tensor(0x7FC0, dtype=torch.int16, device="cpu")
LARGEST = float(torch.finfo(torch.bfloat16).max)


@dataclass(frozen=True)
class BF16(ValueCode):
    """Write 16 bits a value: 8 of significand, float32's range; relative error at most 2**-8."""

    name: ClassVar[str] = "bf16"
    number: ClassVar[int] = 2
    least_bits: ClassVar[int] = 16

    def bytes_for(self, slots: int) -> int:
        """Return 2 bytes a value."""
        return 2 * slots

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round to 8 bits of significand; finite values stay finite."""
        if rounding == "nearest" and values.dtype == torch.float32 and native.runs_on(values):
            return native.round_values(self.name, values)
        if rounding == "stochastic":
            exponents = values.double().frexp().exponent.clamp(min=-125)  # denormals share one spacing
            spacing = power_of_two(exponents - 8)
            values = (to_grid(values.double() / spacing, rounding, generator) * spacing).to(values.dtype)
        rounded = saturate(values, LARGEST).bfloat16().to(values.dtype)
        return torch.where(values.isnan(), torch.nan, rounded)

    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Keep the upper half."""
        halves = values.bfloat16().view(torch.int16)
        halves = torch.where(values.isnan(), NAN.to(values.device), halves)  # torch's own NaN differ by processor
        return pad(halves, slots).view(torch.uint8)

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Fill the lower half with zeros."""
        return section[: 2 * count].clone().view(torch.bfloat16).float()
