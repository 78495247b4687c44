"""Indices as they are: int32, little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.codec.bits import Bytes, pad
from gaussiank.codec.native import Fault, error

from .index_code import DeviceCode, Indices, check_indices


@dataclass(frozen=True)
class Raw(DeviceCode):
    """Write 32 bits an index: nothing to compute, on any device."""

    name: ClassVar[str] = "raw"
    number: ClassVar[int] = 0

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return 4 * count

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return 4 * count

    def slots(self, size: int, count: int, numel: int) -> int:
        """Return the indices that there is room for."""
        if size % 4:
            raise error(Fault.SURPLUS)
        return size // 4

    def encode(self, indices: Tensor, numel: int, slots: int) -> Tensor:
        """Copy, with room for ``slots`` indices; on an accelerator without a check."""
        if indices.device.type == "cpu":
            check_indices(indices.numpy(), numel)
        return pad(indices, slots).view(torch.uint8)

    def decode(self, section: Tensor, count: int, numel: int) -> Tensor:
        """Copy and check; the section is on the CPU."""
        indices = section[: 4 * count].clone().view(torch.int32)
        try:
            check_indices(indices.numpy(), numel)
        except ValueError:
            raise error(Fault.RANGE) from None
        return indices

    def decode_unchecked(self, section: Tensor, slots: int, numel: int) -> Tensor:
        """Copy."""
        return section.clone().view(torch.int32)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Copy."""
        return indices.astype("<i4").view(np.uint8)

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Copy."""
        return section[: 4 * count].view("<i4").astype(np.int64)
