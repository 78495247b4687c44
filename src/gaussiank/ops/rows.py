"""Where a payload for accelerators holds what: all that a kernel has to know of a wire."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NarrowMean(NamedTuple):
    """Where a mean of 16 bits goes, and what it lacks by that.

    Attributes:
        grad: bfloat16 or float16 ``[numel]``; becomes the mean.
        residual: float32 ``[numel]``; what is rounded off is added to it.
    """

    grad: Tensor
    residual: Tensor


ALIGNED_BYTES = 128
"""Rows of a message begin at multiples of it, where NCCL copies 16 bytes at a time."""

COUNTER_BYTES = 64
"""Zeros behind a row that a kernel has written, which are not sent: what the programs of the mean count in."""


class RowFormat(NamedTuple):
    """The places in a row that holds one payload of ``slots`` entries of a vector of ``numel``; in bytes.

    Attributes:
        numel: length of the vector.
        slots: entries that there is room for.
        word: first four bytes of the header, as a little-endian number with sign.
        counts_at: where the counts of the chunks begin.
        full_at: where the bits of full chunks begin.
        offsets_at: where the offsets begin.
        values_at: where the values begin, behind the indices.
        used: size of the payload.
        value_bits: bits of a value: 32; 16, of bfloat16; or 2, with the scale of each 64 of them behind all.
        offset_bits: bits of an offset in a chunk of as many entries as these can count: 16 or 12.
    """

    numel: int
    slots: int
    word: int
    counts_at: int
    full_at: int
    offsets_at: int
    values_at: int
    used: int
    value_bits: int
    offset_bits: int

    @property
    def length(self) -> int:
        """Size of the row: a payload, and zeros up to a multiple of ``ALIGNED_BYTES``."""
        return self.used + -self.used % ALIGNED_BYTES

    def parted(self, written: Tensor) -> tuple[Tensor, Tensor]:
        """Part what a kernel has written into the row, and the int32 counters for the mean of what arrives."""
        return written[: self.length], written[self.length :].view(torch.int32)

    def holds(self, rows: Tensor) -> bool:
        """Tell whether uint8 ``[workers, bytes]`` rows are long enough, each of them end to end."""
        return rows.shape[1] >= self.used and rows.stride(1) == 1
