"""Values as floats: as they are, as bfloat16, or as float16 with one power of two for the whole payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import pad
from gaussiank.ops.dispatch import kernels

from .value_code import Rounding, ValueCode, power_of_two, saturate, to_grid

NAN = 0x7FC0
LARGEST = float(torch.finfo(torch.bfloat16).max)
LARGEST_16 = 2047 * 2.0**117  # the largest finite float32 with 11 bits of significand
TOP = 15  # the largest magnitude of float16 values becomes 2**14 to 2**15
LEAST = -125  # with it, the smallest float16 still is a float32


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
        if rounding == "nearest" and values.dtype == torch.float32 and kernels(values) is not None:
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
        halves = halves.masked_fill(values.isnan(), NAN)  # torch's own NaN differ by processor
        return pad(halves, slots).view(torch.uint8)

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Fill the lower half with zeros."""
        return section[: 2 * count].clone().view(torch.bfloat16).float()


@dataclass(frozen=True)
class FP16(ValueCode):
    """Write 16 bits a value, 11 of significand, down to 2**-29 of the largest one; 2 more bytes for the exponent.

    Plain float16 ends at 65504 and, worse for gradients, begins to lose bits below 6e-5. Divided by a power of two
    that moves the largest magnitude to 2**14 or more, nothing overflows and little is lost.
    """

    name: ClassVar[str] = "fp16"
    number: ClassVar[int] = 3

    def bytes_for(self, slots: int) -> int:
        """Return 2 bytes a value, and 2."""
        return 2 * slots + 2 if slots else 0

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round to 11 bits of significand, fewer for values 2**29 times smaller than the largest."""
        if values.numel() == 0:
            return values.clone()
        wide = saturate(values.double(), LARGEST_16)
        scale = power_of_two(_half_exponent(wide))
        scaled = wide / scale
        if rounding == "stochastic":
            spacing = power_of_two((scaled.frexp().exponent - 11).clamp(min=-24))
            scaled = to_grid(scaled / spacing, rounding, generator) * spacing
        return (scaled.half().double() * scale).to(values.dtype)

    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Write the scaled halves, then the exponent."""
        if slots == 0:
            return torch.empty(0, dtype=torch.uint8, device=values.device)
        exponent = _half_exponent(values.double())
        halves = pad((values.double() / power_of_two(exponent)).half(), slots)
        return torch.cat([halves.view(torch.uint8), exponent.short().view(1).view(torch.uint8)])

    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Multiply the halves by the power of two."""
        halves = section[: 2 * count].clone().view(torch.float16)
        exponent = section[2 * slots : 2 * slots + 2].clone().view(torch.int16)
        return (halves.double() * power_of_two(exponent.clamp(-1022, 1023))).float()


def _half_exponent(values: Tensor) -> Tensor:
    """Return the 0-d exponent that moves the largest finite magnitude, once rounded to 11 bits, below 2**15."""
    if values.numel() == 0:
        return torch.full((), LEAST, device=values.device)
    largest = values.abs().nan_to_num(nan=0.0, posinf=0.0).amax()
    mantissa, exponent = largest.frexp()
    carried = (mantissa * 2048).round() == 2048
    return (exponent + carried - TOP).clamp(min=LEAST)
