"""8-bit values: 255 even levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .blocks import PowerBlocks


@dataclass(frozen=True)
class Bits8(PowerBlocks):
    """Write levels -127 to 127; the error is at most 1/127 of the block's largest magnitude."""

    name: ClassVar[str] = "8bit"
    number: ClassVar[int] = 4
    bits: ClassVar[int] = 8
    least_bits: ClassVar[int] = 8
    top: ClassVar[int] = 127
