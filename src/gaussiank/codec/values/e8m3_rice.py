"""Four bits of significand and float32's range, in about three bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank.codec import native

from .magnitudes import RiceMagnitudes
from .value_code import Rounding, power_of_two, saturate, to_grid

LARGEST = 1.875 * 2.0**127


@dataclass(frozen=True)
class E8M3Rice(RiceMagnitudes):
    """Write a bfloat16 with 3 bits after the point, not 7; relative error at most 2**-4.

    About 3 bits a value of a real selection, whose norm changes by 2 to 3 %.
    """

    name: ClassVar[str] = "e8m3-rice"
    number: ClassVar[int] = 9
    drop: ClassVar[int] = 4
    usual_bits: ClassVar[float] = 3.4
    plain: ClassVar[str | None] = "bf16"

    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round to 4 bits of significand; finite values stay finite."""
        if rounding == "nearest" and values.dtype == torch.float32 and native.runs_on(values):
            return native.round_values("e8m3", values)
        wide = values.double()
        finite = wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        spacing = power_of_two(finite.frexp().exponent.clamp(min=-125) - 4)  # denormals share one
        rounded = saturate(to_grid(finite / spacing, rounding, generator) * spacing, LARGEST)
        return torch.where(wide.isfinite(), rounded, wide).to(values.dtype)
