"""One section of a payload alone, for workers who know the other: which entries without values, values without indices.

A message of its own between workers of one exchange, who know its length; nothing that is kept. Specified in
docs/wire-format.md.
"""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from .indices import INDEX_CODES, DeviceCode
from .native import Fault, error
from .values import VALUE_CODES
from .wire import WIDE, Wire

_HEAD = struct.Struct("<III")  # count, bytes of the section, CRC-32 of both and the section


def indices_bytes(wire: Wire, k: int, numel: int) -> int:
    """Return the length of a row of at most ``k`` indices, wherever they lie.

    Example:
        >>> indices_bytes(Wire.parse("raw+fp32"), 1000, 10**6), indices_bytes(Wire.parse("rice+bf16"), 1000, 10**6)
        (4012, 1519)
    """
    k = min(k, numel)
    code = INDEX_CODES[wire.index]
    return _HEAD.size + (code.max_bytes(k, numel) if k or isinstance(code, DeviceCode) else 0)


def write_indices(wire: Wire, indices: Tensor, numel: int, k: int) -> Tensor:
    """Write ascending int32 ``[count]`` indices, ``count <= k``, into a row of ``indices_bytes(wire, k, numel)``.

    Raises:
        ValueError: on the CPU, when the indices do not ascend or leave [0, numel).

    Example:
        >>> wire, indices = Wire(), torch.tensor([3, 700], dtype=torch.int32)
        >>> read_indices(wire, write_indices(wire, indices, 1000, 5), 1000).tolist()
        [3, 700]
    """
    code, device = INDEX_CODES[wire.index], indices.device
    if not isinstance(code, DeviceCode):
        indices = indices.cpu()
    section = code.encode(indices, numel, indices.numel()).to(device)
    head = _HEAD.pack(indices.numel(), section.numel(), _checksum(indices.numel(), section))
    row = torch.zeros(indices_bytes(wire, k, numel), dtype=torch.uint8, device=device)
    row[: _HEAD.size] = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(device, non_blocking=True)
    row[_HEAD.size : _HEAD.size + section.numel()] = section
    return row


def read_indices(wire: Wire, row: Tensor, numel: int) -> Tensor:
    """Read int32 ``[count]`` indices; waits for an accelerator.

    Raises:
        ValueError: the row is damaged.
    """
    count, size, checksum = _HEAD.unpack(bytes(row[: _HEAD.size].tolist()))
    code = INDEX_CODES[wire.index]
    if count > numel or size > row.numel() - _HEAD.size or code.least_bytes(count, numel) > size:
        raise error(Fault.TRUNCATED)
    section = row[_HEAD.size : _HEAD.size + size].cpu()
    if checksum != (_checksum(count, section) if row.device.type == "cpu" else 0):
        raise ValueError("indices must match their checksum, got another. They are damaged: have them resent.")
    return code.decode(section, count, numel).to(row.device)


def values_bytes(wire: Wire, slots: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the size of a section of ``slots`` values.

    Example:
        >>> values_bytes(Wire.parse("rice+bf16"), 100), values_bytes(Wire.parse("rice+fp32"), 100, torch.float64)
        (200, 800)
    """
    return VALUE_CODES[_name(wire, dtype)].bytes_for(slots)


def write_values(wire: Wire, values: Tensor, slots: int) -> Tensor:
    """Write float ``[count]`` values that ``wire.round`` has rounded; unused slots are zero."""
    return VALUE_CODES[_name(wire, values.dtype)].encode(values, slots)


def read_values(wire: Wire, section: Tensor, count: int, slots: int, dtype: torch.dtype) -> Tensor:
    """Read the first ``count`` values of a section; any bytes give some values.

    Example:
        >>> wire, values = Wire(), torch.tensor([0.5, -2.0])
        >>> read_values(wire, write_values(wire, values, 4), 2, 4, torch.float32).tolist()
        [0.5, -2.0]
    """
    return VALUE_CODES[_name(wire, dtype)].decode(section, count, slots).to(dtype)


def _name(wire: Wire, dtype: torch.dtype) -> str:
    """Return the code of shares, whose size is known: what varies travels as what it packs."""
    return WIDE if wire.values == "fp32" and dtype == torch.float64 else VALUE_CODES[wire.values].plain or wire.values


def _checksum(count: int, section: Tensor) -> int:
    """Return the CRC-32 of a section on the CPU, and else 0: it would wait for the device."""
    if section.device.type != "cpu":
        return 0
    return zlib.crc32(section.contiguous().numpy().data, count)
