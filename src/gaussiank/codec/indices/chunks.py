"""Offsets in chunks of the vector: nothing to read one after the other, so that an accelerator can."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.codec import native
from gaussiank.codec.bits import Bytes, bytes_of, pad
from gaussiank.codec.native import Fault, error
from gaussiank.ops.dispatch import kernels

from .index_code import DeviceCode, Indices, check_indices


@dataclass(frozen=True)
class ChunkCode(DeviceCode):
    """Write the count of each chunk of ``2**bits`` entries, a bit for each full chunk, then the offset of each index.

    Counts and offsets are numbers of ``bits`` bits. A count is sent modulo the size of a chunk, and only a full chunk
    needs more than that: its bit says so. So the size follows from ``slots`` and ``numel`` alone, wherever the indices
    lie. The reference is plain torch, the same on every device, and reads nothing back to the host.

    Attributes:
        bits: bits of an offset.
    """

    bits: ClassVar[int]

    @abstractmethod
    def write(self, numbers: Tensor) -> Tensor:
        """Write the lowest ``bits`` bits of integers ``[count]`` to uint8, on their device."""

    @abstractmethod
    def read(self, section: Tensor, count: int) -> Tensor:
        """Read ``count`` numbers from the front of a section, on its device."""

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return self.least_bytes(count, numel)

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return self._head(numel) + bytes_of(self.bits * count)

    def slots(self, size: int, count: int, numel: int) -> int:
        """Return the offsets that there is room for."""
        room = size - self._head(numel)
        slots = 8 * room // self.bits
        if bytes_of(self.bits * slots) != room:
            raise error(Fault.SURPLUS)
        return slots

    def encode(self, indices: Tensor, numel: int, slots: int) -> Tensor:
        """Encode, with room for ``slots`` offsets; on an accelerator without a check."""
        room = self.least_bytes(slots, numel)
        if self.compiled and kernels(indices) is not None:
            return pad(native.encode_indices(self.name, indices, numel, room), room)
        if indices.device.type == "cpu":
            check_indices(indices.numpy(), numel)
        return pad(self._encode(indices, numel), room)

    def decode(self, section: Tensor, count: int, numel: int) -> Tensor:
        """Decode and check; the section is on the CPU."""
        if self.compiled and kernels(section) is not None:
            return native.decode_indices(self.name, section, count, numel)
        counts = self._counts(section, numel)
        if int(counts.sum()) != count or int(counts.max()) > 1 << self.bits:
            raise error(Fault.RANGE)
        indices = self.decode_unchecked(section, count, numel)
        if count and (int(indices[-1]) >= numel or bool((indices.diff() <= 0).any())):
            raise error(Fault.RANGE)
        return indices

    def decode_unchecked(self, section: Tensor, slots: int, numel: int) -> Tensor:
        """Decode int32 ``[slots]`` indices; those behind what the section holds are of no use."""
        ends = self._counts(section, numel).cumsum(0)
        chunk = torch.searchsorted(ends, torch.arange(slots, device=section.device), right=True)
        return ((chunk << self.bits) + self.read(section[self._head(numel) :], slots)).int()

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Encode with plain torch."""
        section: Bytes = self._encode(torch.from_numpy(indices), numel).numpy()
        return section

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Decode with plain torch."""
        return self.decode_unchecked(torch.from_numpy(section), count, numel).numpy().astype(np.int64)

    def _encode(self, indices: Tensor, numel: int) -> Tensor:
        """Encode int32 ``[count]`` indices on their device; no host synchronisation, no check."""
        chunks = self._chunks(numel)
        edges = torch.arange(chunks + 1, device=indices.device) << self.bits
        counts = torch.searchsorted(indices.long(), edges).diff()
        flags = pad(counts >> self.bits, 8 * bytes_of(chunks))
        full = (flags.view(-1, 8) << torch.arange(8, device=indices.device)).sum(1).to(torch.uint8)
        return torch.cat([self.write(counts), full, self.write(indices)])

    def _counts(self, section: Tensor, numel: int) -> Tensor:
        """Read the int64 ``[chunks]`` counts on the device of the section."""
        chunks, head = self._chunks(numel), self._head(numel)
        places = torch.arange(8, device=section.device)
        full = (section[head - bytes_of(chunks) : head, None] >> places) & 1
        return self.read(section, chunks) + (full.flatten()[:chunks].long() << self.bits)

    def _chunks(self, numel: int) -> int:
        return -(-numel >> self.bits)

    def _head(self, numel: int) -> int:
        """Return the bytes in front of the offsets."""
        chunks = self._chunks(numel)
        return bytes_of(self.bits * chunks) + bytes_of(chunks)


@dataclass(frozen=True)
class Chunks(ChunkCode):
    """Write 16-bit offsets in chunks of 65,536: 16 bits an index at almost any density.

    Example:
        >>> Chunks().encode(torch.tensor([1, 65537], dtype=torch.int32), numel=65538, slots=2).tolist()
        [1, 0, 1, 0, 0, 1, 0, 1, 0]
    """

    name: ClassVar[str] = "chunks"
    number: ClassVar[int] = 3
    bits: ClassVar[int] = 16

    def write(self, numbers: Tensor) -> Tensor:
        """Write both bytes of each, the lower first."""
        return torch.stack([numbers & 0xFF, (numbers >> 8) & 0xFF], 1).to(torch.uint8).flatten()

    def read(self, section: Tensor, count: int) -> Tensor:
        """Read both bytes of each."""
        pairs = section[: 2 * count].view(-1, 2).long()
        return pairs[:, 0] | (pairs[:, 1] << 8)


@dataclass(frozen=True)
class Chunks12(ChunkCode):
    """Write 12-bit offsets in chunks of 4,096: from density 0.001 on fewer bits than ``chunks``, 12.2 at 1/64.

    There is no C code for it: a CPU is served better by ``rice``, and reads this to understand accelerators.

    Example:
        >>> Chunks12().encode(torch.tensor([1, 4097, 4098], dtype=torch.int32), numel=4100, slots=3).tolist()
        [1, 32, 0, 0, 1, 16, 0, 2, 0]
    """

    name: ClassVar[str] = "chunks12"
    number: ClassVar[int] = 6
    compiled: ClassVar[bool] = False
    bits: ClassVar[int] = 12

    def write(self, numbers: Tensor) -> Tensor:
        """Write two to three bytes, the lowest bits first."""
        pairs = (pad(numbers, -(-numbers.numel() // 2) * 2) & 0xFFF).view(-1, 2)
        both = pairs[:, 0] | (pairs[:, 1] << 12)
        whole = (torch.stack([both, both >> 8, both >> 16], 1) & 0xFF).to(torch.uint8)
        return whole.flatten()[: bytes_of(12 * numbers.numel())]

    def read(self, section: Tensor, count: int) -> Tensor:
        """Read two from three bytes."""
        triples = pad(section[: bytes_of(12 * count)], 3 * -(-count // 2)).view(-1, 3).int()
        both = triples[:, 0] | (triples[:, 1] << 8) | (triples[:, 2] << 16)
        return torch.stack([both & 0xFFF, both >> 12], 1).flatten()[:count]
