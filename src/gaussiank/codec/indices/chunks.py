"""16-bit offsets in chunks of 64 Ki: nothing to read one after the other, so that an accelerator can."""

from __future__ import annotations

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

CHUNK = 1 << 16


@dataclass(frozen=True)
class Chunks(DeviceCode):
    """Write the count of each chunk as 16 bits, a bit for each full chunk, then 16 bits of each index.

    The reference is plain torch, the same on every device, and reads nothing back to the host.
    """

    name: ClassVar[str] = "chunks"
    number: ClassVar[int] = 3

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return self.least_bytes(count, numel)

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the size itself."""
        return _head(numel) + 2 * count

    def slots(self, size: int, count: int, numel: int) -> int:
        """Return the offsets that there is room for."""
        if (size - _head(numel)) % 2:
            raise error(Fault.SURPLUS)
        return (size - _head(numel)) // 2

    def encode(self, indices: Tensor, numel: int, slots: int) -> Tensor:
        """Encode, with room for ``slots`` offsets; on an accelerator without a check."""
        room = self.least_bytes(slots, numel)
        if kernels(indices) is not None:
            return pad(native.encode_indices(self.name, indices, numel, room), room)
        if indices.device.type == "cpu":
            check_indices(indices.numpy(), numel)
        return pad(encode_chunks(indices, numel), room)

    def decode(self, section: Tensor, count: int, numel: int) -> Tensor:
        """Decode and check; the section is on the CPU."""
        if kernels(section) is not None:
            return native.decode_indices(self.name, section, count, numel)
        counts = chunk_counts(section, numel)
        if int(counts.sum()) != count or int(counts.max()) > CHUNK:
            raise error(Fault.RANGE)
        indices = decode_chunks(section, count, numel)
        if count and (int(indices[-1]) >= numel or bool((indices.diff() <= 0).any())):
            raise error(Fault.RANGE)
        return indices

    def decode_unchecked(self, section: Tensor, slots: int, numel: int) -> Tensor:
        """Decode with plain torch."""
        return decode_chunks(section, slots, numel)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Encode with plain torch."""
        section: Bytes = encode_chunks(torch.from_numpy(indices), numel).numpy()
        return section

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Decode with plain torch."""
        return decode_chunks(torch.from_numpy(section), count, numel).numpy().astype(np.int64)


def encode_chunks(indices: Tensor, numel: int) -> Tensor:
    """Encode int32 ``[count]`` indices on their device; no host synchronisation, no check.

    Example:
        >>> encode_chunks(torch.tensor([1, 65537], dtype=torch.int32), numel=65538).tolist()
        [1, 0, 1, 0, 0, 1, 0, 1, 0]
    """
    edges = torch.arange(_chunks(numel) + 1, device=indices.device) * CHUNK
    counts = torch.searchsorted(indices.long(), edges).diff()
    flags = pad(counts >> 16, 8 * bytes_of(_chunks(numel)))
    full = (flags.view(-1, 8) << torch.arange(8, device=indices.device)).sum(1).to(torch.uint8)
    return torch.cat([_low_16(counts), full, _low_16(indices)])


def chunk_counts(section: Tensor, numel: int) -> Tensor:
    """Read the int64 ``[chunks]`` counts on the device of the section."""
    chunks = _chunks(numel)
    counts = _wide(section[: 2 * chunks])
    places = torch.arange(8, device=section.device)
    full = (section[2 * chunks : _head(numel), None] >> places) & 1
    return counts + (full.flatten()[:chunks].long() << 16)


def decode_chunks(section: Tensor, count: int, numel: int) -> Tensor:
    """Decode int32 ``[count]`` indices on the device of the section; no host synchronisation, no check.

    ``count`` may be larger than what the section holds: what comes behind is of no use.
    """
    ends = chunk_counts(section, numel).cumsum(0)
    chunk = torch.searchsorted(ends, torch.arange(count, device=section.device), right=True)
    head = _head(numel)
    return (chunk * CHUNK + _wide(section[head : head + 2 * count])).int()


def _low_16(numbers: Tensor) -> Tensor:
    """Write the lowest 16 bits of integers, little-endian."""
    return torch.stack([numbers & 0xFF, (numbers >> 8) & 0xFF], 1).to(torch.uint8).flatten()


def _wide(section: Tensor) -> Tensor:
    """Read little-endian 16-bit numbers as int64."""
    pairs = section.view(-1, 2).long()
    return pairs[:, 0] | (pairs[:, 1] << 8)


def _chunks(numel: int) -> int:
    return -(-numel // CHUNK)


def _head(numel: int) -> int:
    return 2 * _chunks(numel) + bytes_of(_chunks(numel))
