"""Value codes: one line each in the table."""

from __future__ import annotations

from .bf16_rice import BF16Rice
from .floats import BF16, FP16, FP32, FP64
from .levels import Bits2, Bits4, Bits8, Sign
from .value_code import Rounding, ValueCode

VALUE_CODES: dict[str, ValueCode] = {
    code.name: code for code in (FP32(), FP64(), BF16(), FP16(), BF16Rice(), Bits8(), Bits4(), Bits2(), Sign())
}
"""Name -> code."""

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "FP64",
    "VALUE_CODES",
    "BF16Rice",
    "Bits2",
    "Bits4",
    "Bits8",
    "Rounding",
    "Sign",
    "ValueCode",
]
