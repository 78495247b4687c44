"""What every index code is: ascending indices <-> one section of bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import Bytes
from gaussiank.codec.native import Fault, error
from gaussiank.ops.dispatch import kernels

Indices = NDArray[np.int32]


class IndexCode(ABC):
    """Write ascending int32 indices to bytes and read them back. Frozen; one file and one line in the table each.

    ``encode`` and ``decode`` use the C code where it is built, and the reference otherwise: the bytes are the same.

    Attributes:
        name: its key in ``INDEX_CODES``, and its word in ``Wire.parse``.
        number: its number on the wire, for ever.
        varies: whether the size depends on where the indices lie, not on count and numel alone.
        compiled: whether the C code has it, where that is built.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    varies: ClassVar[bool] = False
    compiled: ClassVar[bool] = True

    @abstractmethod
    def max_bytes(self, count: int, numel: int) -> int:
        """Return the most bytes that ``count`` indices, or fewer, can take; 1 <= count <= numel.

        It grows with ``count`` and with ``numel``: room for the widest share is room for every other one.
        """

    @abstractmethod
    def least_bytes(self, count: int, numel: int) -> int:
        """Return the fewest bytes that ``count`` indices can take: what is shorter is refused unread."""

    def slots(self, size: int, count: int, numel: int) -> int:
        """Return the entries that a section of ``size`` bytes has room for: as many values follow it."""
        del size, numel
        return count

    def encode(self, indices: Tensor, numel: int, slots: int) -> Tensor:
        """Encode int32 ``[count]`` indices to uint8; ``slots`` >= count is used by codes that run on a device.

        Raises:
            ValueError: on the CPU, when the indices do not ascend or leave [0, numel).
        """
        del slots
        array = indices.numpy()
        if self.compiled and kernels(indices) is not None:
            return native.encode_indices(self.name, indices, numel, self.max_bytes(max(len(array), 1), numel))
        check_indices(array, numel)
        return torch.from_numpy(self.encode_reference(array, numel)) if len(array) else _NOTHING.clone()

    def decode(self, section: Tensor, count: int, numel: int) -> Tensor:
        """Decode int32 ``[count]`` indices; the section is untrusted, and was found to be ``least_bytes`` long.

        Raises:
            ValueError: it is damaged.
        """
        if self.compiled and kernels(section) is not None:
            return native.decode_indices(self.name, section, count, numel)
        if not count:
            if section.numel():
                raise error(Fault.SURPLUS)
            return torch.empty(0, dtype=torch.int32, device="cpu")
        indices = self.decode_reference(section.numpy(), count, numel)
        if indices[0] < 0 or indices[-1] >= numel or bool((np.diff(indices) <= 0).any()):
            raise error(Fault.RANGE)
        return torch.from_numpy(indices.astype(np.int32))

    @abstractmethod
    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Encode at least one index; the specification of the bytes."""

    @abstractmethod
    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Decode at least one index; order and range are checked by the caller."""


class DeviceCode(IndexCode):
    """An index code that runs on an accelerator without waiting for it.

    Its section may have room for more entries than it holds, so that each part of a message lies at a known place.
    """

    @abstractmethod
    def decode_unchecked(self, section: Tensor, slots: int, numel: int) -> Tensor:
        """Decode int32 ``[slots]`` indices on the device of the section; unused slots give any number."""


_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")


def check_indices(indices: Indices, numel: int) -> None:
    """Raise ``ValueError`` unless the indices ascend without repeats in [0, numel)."""
    if len(indices) and (indices[0] < 0 or indices[-1] >= numel or bool((np.diff(indices) <= 0).any())):
        raise error(Fault.INDICES)
