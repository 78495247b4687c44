"""Wire format 2: a header of 20 bytes, a section of indices, a section of values. Specified in docs/wire-format.md."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.ops import RowFormat
from gaussiank.sparse import MAX_NUMEL, SparseGradient

from . import native
from .bits import bytes_of
from .indices import INDEX_CODES, RETIRED_CODES, DeviceCode, IndexCode, Seed, SharedDraw
from .indices.chunks import ChunkCode
from .native import HEADER_BYTES, Fault, error
from .values import VALUE_CODES, ValueCode

VERSION = 2
MAX_INDEX_BYTES = 2**32 - 1
_MAGIC = b"KG"
_FIELDS = struct.Struct("<B2sBIII")  # version, magic, codes, numel, count, index bytes; the checksum follows
_UNCHECKED = 0x80  # in codes: written on an accelerator, without a checksum
_INDEX_NUMBERS = {code.number: code for code in (*INDEX_CODES.values(), *RETIRED_CODES)}
_VALUE_NUMBERS = {code.number: code for code in VALUE_CODES.values()}


@dataclass(frozen=True)
class Codes:
    """The two codes of a payload."""

    index: IndexCode
    values: ValueCode

    @property
    def text(self) -> str:
        """``index+values``, as ``Wire.parse`` reads it."""
        return f"{self.index.name}+{self.values.name}"

    @cached_property
    def on_device(self) -> bool:
        """Whether the section of indices may have room for more than it holds, as accelerators need it."""
        return isinstance(self.index, DeviceCode)

    @cached_property
    def numbers(self) -> tuple[int, int]:
        """Both codes' numbers."""
        return self.index.number, self.values.number

    @cached_property
    def native(self) -> bool:
        """Whether the C code, where it is built, writes and reads such a payload as a whole."""
        names = native.PAYLOAD_CODES
        return self.index.compiled and self.index.name in names[0] and self.values.name in names[1]

    @lru_cache(maxsize=4096)  # noqa: B019  a pair of codes is a value: what is kept for one serves all that equal it
    def sizes(self, slots: int, numel: int) -> tuple[int, int]:
        """Return the most bytes of a payload of so many slots, and the size of its indices, 0 where they decide it."""
        most = HEADER_BYTES + self.index.max_bytes(max(slots, 1), numel) + self.values.bytes_for(slots)
        return most, self.index.max_bytes(slots, numel) if self.on_device else 0

    def with_draw(self, shared: SharedDraw | None) -> Codes:
        """Return the codes with the draw that the index code ``seed`` needs."""
        return Codes(Seed(shared), self.values) if isinstance(self.index, Seed) else self


@dataclass(frozen=True)
class Header:
    """What stands in front of the sections."""

    codes: Codes
    numel: int
    count: int
    index_bytes: int
    checked: bool = True

    def pack(self) -> bytes:
        """Write all but the checksum."""
        numbers = self.codes.index.number | self.codes.values.number << 3 | (0 if self.checked else _UNCHECKED)
        return _FIELDS.pack(VERSION, _MAGIC, numbers, self.numel, self.count, self.index_bytes)


KERNEL_WIRES = {"chunks+bf16": 16, "chunks+fp32": 32, "chunks12+bf16": 16, "chunks12+2bit": 2}
"""The wires whose payloads kernels in Triton write and read, and the bits of their values."""


def row_format(codes: Codes, slots: int, numel: int) -> RowFormat | None:
    """Return where a payload of ``slots`` entries holds what, if there are kernels for its codes.

    Example:
        >>> from gaussiank.codec import INDEX_CODES
        >>> row_format(Codes(INDEX_CODES["chunks"], VALUE_CODES["bf16"]), 10, 10**6).used
        94
    """
    bits = KERNEL_WIRES.get(codes.text)
    if bits is None:
        return None
    assert isinstance(codes.index, ChunkCode)
    word = int.from_bytes(Header(codes, numel, slots, 0, checked=False).pack()[:4], "little", signed=True)
    offsets_at = HEADER_BYTES + codes.index.max_bytes(0, numel)
    full_at = offsets_at - bytes_of(-(-numel >> codes.index.bits))
    values_at = HEADER_BYTES + codes.index.max_bytes(slots, numel)
    used = values_at + codes.values.bytes_for(slots)
    if used > MAX_NUMEL:  # kernels count bytes in 32 bits
        return None
    return RowFormat(numel, slots, word, HEADER_BYTES, full_at, offsets_at, values_at, used, bits, codes.index.bits)


def write(sparse: SparseGradient, codes: Codes, slots: int) -> Tensor:
    """Write entries whose values are rounded; on the CPU everything is checked and a checksum written.

    Args:
        sparse: what to send, on a device that the index code runs on.
        codes: index and value code.
        slots: entries to have room for, if the index code is a ``DeviceCode``.

    Returns:
        uint8 ``[bytes]`` on the device of ``sparse``, without unused bytes at the end.

    Raises:
        ValueError: indices out of order, or values that are not rounded.
    """
    if (packed := native.write_payload(codes, sparse, slots)) is not None:
        return packed.row
    slots = slots if isinstance(codes.index, DeviceCode) else sparse.kept
    on_cpu = sparse.indices.device.type == "cpu"
    indices = codes.index.encode(sparse.indices, sparse.numel, slots)
    values = codes.values.encode(sparse.values, slots)
    if on_cpu and not codes.values.exact:
        require_same_bits(codes.values.decode(values, sparse.kept, slots).to(sparse.values.dtype), sparse.values)
    if indices.numel() > MAX_INDEX_BYTES:
        raise ValueError(f"sparse must take at most {MAX_INDEX_BYTES} bytes of indices, got more. Send it in parts.")
    head = Header(codes, sparse.numel, sparse.kept, indices.numel(), checked=on_cpu).pack()
    checksum = 0
    if on_cpu:
        checksum = zlib.crc32(_view(values), zlib.crc32(_view(indices), zlib.crc32(head)))
    whole = torch.frombuffer(bytearray(head + struct.pack("<I", checksum)), dtype=torch.uint8)
    return torch.cat([whole.to(indices.device, non_blocking=True), indices, values])


def require_same_bits(back: Tensor, values: Tensor) -> None:
    """Raise ``ValueError`` unless values came back as they were: the same bits, and NaN for NaN."""
    bits = torch.int64 if values.dtype == torch.float64 else torch.int32
    same = (back.view(bits) == values.view(bits)) | (back.isnan() & values.isnan())
    if not bool(same.all()):
        raise error(Fault.VALUES)


def read(
    payload: Tensor,
    numel: int | None = None,
    expected: Collection[str] | None = None,
    shared: SharedDraw | None = None,
) -> SparseGradient:
    """Read an untrusted payload on the CPU; bytes behind its sections are ignored.

    Nothing is allocated before the payload was found long enough for the entries that it names: at most 64 times its
    size is used.

    Args:
        payload: uint8 ``[bytes]`` on the CPU.
        numel: length that is expected; None takes the header's word.
        expected: texts of the codes that are expected; None takes the header's word.
        shared: how indices are drawn, if they are not sent.

    Raises:
        ValueError: foreign, truncated or damaged, or not what was expected.
    """
    body = payload.contiguous()
    header = _read_header(bytes(_view(body[:HEADER_BYTES])), numel)
    if expected is not None and header.codes.text not in expected:
        raise ValueError(
            f"payload must be coded as {' or '.join(expected)}, got {header.codes.text}. "
            "Use the same wire on all workers."
        )
    codes = header.codes.with_draw(shared)
    room = body.numel() - HEADER_BYTES
    if header.index_bytes > room or codes.index.least_bytes(header.count, header.numel) > header.index_bytes:
        raise error(Fault.TRUNCATED)
    slots = codes.index.slots(header.index_bytes, header.count, header.numel)
    end = header.index_bytes + codes.values.size_of(body[HEADER_BYTES + header.index_bytes :], header.count, slots)
    if end > room:
        raise error(Fault.TRUNCATED)
    if header.checked:
        seen = _view(body)
        checksum = zlib.crc32(seen[HEADER_BYTES : HEADER_BYTES + end], zlib.crc32(seen[: HEADER_BYTES - 4]))
        if struct.pack("<I", checksum) != seen[HEADER_BYTES - 4 : HEADER_BYTES]:
            raise ValueError("payload must match its checksum, got another. It is damaged: drop it, or have it resent.")
    elif bool(body[HEADER_BYTES - 4 : HEADER_BYTES].any()):
        raise ValueError("payload must have no checksum where its header says so, got one. It is damaged: drop it.")
    sections = body[HEADER_BYTES : HEADER_BYTES + end]
    indices = codes.index.decode(sections[: header.index_bytes], header.count, header.numel)
    values = codes.values.decode(sections[header.index_bytes :], header.count, slots)
    return SparseGradient(indices, values, header.numel)


def read_unchecked(payload: Tensor, codes: Codes, slots: int, numel: int) -> SparseGradient:
    """Read a payload with room for ``slots`` entries on its device, without waiting for it and without a check.

    Unused slots come back as zeros at the last indices, one each: they add nothing, and at one address an accelerator
    would add them one after another.
    """
    assert isinstance(codes.index, DeviceCode)
    start = HEADER_BYTES + codes.index.max_bytes(slots, numel)
    count = payload[8:12].clone().view(torch.int32)  # stays on the device
    slot = torch.arange(slots, device=payload.device, dtype=torch.int32)
    used = slot < count
    indices = codes.index.decode_unchecked(payload[HEADER_BYTES:start], slots, numel)
    values = codes.values.decode(payload[start : start + codes.values.bytes_for(slots)], slots, slots)
    return SparseGradient(torch.where(used, indices, slot + (numel - slots)), torch.where(used, values, 0.0), numel)


def _view(section: Tensor) -> memoryview:
    """Return the bytes of a contiguous uint8 tensor on the CPU, without a copy."""
    array: NDArray[np.uint8] = section.numpy()
    return array.data


def counts(rows: Iterable[Tensor]) -> list[int]:
    """Read the counts in the headers of payloads; one synchronisation on an accelerator.

    Example:
        >>> counts([torch.tensor([2, 75, 71, 0, 9, 0, 0, 0, 5, 0, 0, 0, 0], dtype=torch.uint8)])
        [5]
    """
    read: list[int] = torch.stack([row[8:12] for row in rows]).view(torch.int32).flatten().tolist()
    return read


def is_ours(payload: Tensor) -> bool:
    """Tell whether a uint8 payload on the CPU begins as ours do, of whatever version."""
    return bytes(payload[1:3].tolist()) == _MAGIC


def _read_header(head: bytes, expected_numel: int | None) -> Header:
    if len(head) < HEADER_BYTES:
        raise ValueError(f"payload must have a header of {HEADER_BYTES} bytes, got {len(head)} bytes. Pass it whole.")
    version, magic, numbers, numel, count, index_bytes = _FIELDS.unpack(head[:-4])
    if magic != _MAGIC:
        raise ValueError(f"payload must begin with the gaussiank magic number, got {head[:4].hex()}. It is not ours.")
    if version != VERSION:
        raise ValueError(
            f"payload must have wire version 1 or {VERSION}, got {version}. Use one gaussiank on all workers."
        )
    index, values = _INDEX_NUMBERS.get(numbers & 7), _VALUE_NUMBERS.get(numbers >> 3 & 15)
    if index is None or values is None:
        raise ValueError(
            f"payload must have known codes, got index code {numbers & 7} and value code {numbers >> 3 & 15}. "
            "Use one gaussiank on all workers."
        )
    if not 1 <= numel <= MAX_NUMEL or count > numel:
        raise ValueError(
            f"payload must name a numel in [1, {MAX_NUMEL}] and no more entries, got numel {numel} and {count} "
            "entries. It is damaged: drop it, or have it resent."
        )
    if expected_numel is not None and numel != expected_numel:
        raise ValueError(
            f"payload must be of a vector of {expected_numel} entries, got one of {numel}. "
            "Workers disagree on the model."
        )
    return Header(Codes(index, values), numel, count, index_bytes, not numbers & _UNCHECKED)
