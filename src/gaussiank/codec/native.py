"""The codec's C code, when it is built: the bytes of the reference, many times faster; and what both find wrong."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gaussiank.ops.dispatch import kernels
from gaussiank.ops.native import address, library
from gaussiank.sparse import SparseGradient

if TYPE_CHECKING:
    from .payload import Codes

HEADER_BYTES = 20
"""In front of the sections of a payload."""

SLACK = 8
"""Bytes behind the result that encoders may write to; ``SLACK`` in ``csrc/codec.h``."""


class Fault(IntEnum):
    """Number of a fault; negative, as C returns it."""

    ROOM = -1
    INDICES = -2
    TRUNCATED = -3
    RANGE = -4
    SURPLUS = -5
    VALUES = -6
    LEVEL = -7


_DAMAGED = "It is damaged: drop it, or have it sent again."
_MESSAGES = {
    Fault.ROOM: "room must hold what is encoded, got less. This is an error of the codec: report it.",
    Fault.INDICES: "indices must ascend without repeats in [0, numel), got others. See SparseGradient.check.",
    Fault.TRUNCATED: f"payload must hold the entries that its header counts, got fewer. {_DAMAGED}",
    Fault.RANGE: f"payload must hold ascending indices in [0, numel), got another. {_DAMAGED}",
    Fault.SURPLUS: f"payload must hold no more bytes than its entries need, got more. {_DAMAGED}",
    Fault.VALUES: "values must be rounded to the code before they are encoded, got others. Call Wire.pack: it rounds.",
    Fault.LEVEL: f"payload must hold values of its code, got another. {_DAMAGED}",
}


def error(fault: int) -> ValueError:
    """Make the error of a fault.

    Example:
        >>> str(error(Fault.RANGE))[:55]
        'payload must hold ascending indices in [0, numel), got '
    """
    return ValueError(_MESSAGES[Fault(fault)])


# ---------------------------------------------------------------------- one section, by its code


def encode_indices(name: str, indices: Tensor, numel: int, room: int) -> Tensor:
    """Encode int32 indices with an index code; ``room`` is the most bytes that they can take."""
    indices = indices.contiguous()
    section = torch.empty(room + SLACK, dtype=torch.uint8, device="cpu")
    encode = _function(f"{name}_encode", c_void_p, c_int64, c_int64, c_void_p, c_int64)
    size = encode(address(indices, torch.int32), indices.numel(), numel, address(section, torch.uint8), section.numel())
    if size < 0:
        raise error(size)
    return section[:size]


def decode_indices(name: str, section: Tensor, count: int, numel: int) -> Tensor:
    """Decode ``count`` int32 indices from an untrusted section."""
    section = section.contiguous()
    indices = torch.empty(count, dtype=torch.int32, device="cpu")
    decode = _function(f"{name}_decode", c_void_p, c_int64, c_int64, c_int64, c_void_p)
    size = decode(address(section, torch.uint8), section.numel(), count, numel, address(indices, torch.int32, count))
    if size < 0:
        raise error(size)
    return indices


def round_values(name: str, values: Tensor) -> Tensor:
    """Round float32 ``[count]`` values to the nearest levels of a value code."""
    values = values.contiguous()
    rounded = torch.empty_like(values)
    _function(f"{name}_round", c_void_p, c_int64, c_void_p)(
        address(values, torch.float32), values.numel(), address(rounded, torch.float32)
    )
    return rounded


def encode_values(name: str, values: Tensor, slots: int, size: int) -> Tensor:
    """Encode rounded float32 ``[count]`` values to a section of ``slots`` values and ``size`` bytes."""
    values = values.contiguous()
    section = torch.empty(size, dtype=torch.uint8, device="cpu")
    encode = _function(f"{name}_encode", c_void_p, c_int64, c_int64, c_void_p)
    encode(address(values, torch.float32), values.numel(), slots, address(section, torch.uint8, size))
    return section


def decode_values(name: str, section: Tensor, count: int, slots: int) -> Tensor:
    """Decode the first ``count`` float32 values of a section that is large enough for ``slots``."""
    section = section.contiguous()
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    decode = _function(f"{name}_decode", c_void_p, c_int64, c_int64, c_void_p)
    decode(address(section, torch.uint8), count, slots, address(values, torch.float32, count))
    return values


def pack_values(name: str, values: Tensor, room: int) -> Tensor:
    """Encode rounded float32 ``[count]`` values to a section whose size they decide, of at most ``room`` bytes."""
    values = values.contiguous()
    section = torch.empty(room + SLACK, dtype=torch.uint8, device="cpu")
    encode = _function(f"{_c_name(name)}_encode", c_void_p, c_int64, c_void_p, c_int64)
    size = encode(address(values, torch.float32), values.numel(), address(section, torch.uint8), section.numel())
    if size < 0:
        raise error(size)
    return section[:size]


def unpack_values(name: str, section: Tensor, count: int) -> Tensor:
    """Decode ``count`` float32 values from an untrusted section whose size they decide."""
    section = section.contiguous()
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    decode = _function(f"{_c_name(name)}_decode", c_void_p, c_int64, c_int64, c_void_p)
    fault = decode(address(section, torch.uint8), section.numel(), count, address(values, torch.float32, count))
    if fault < 0:
        raise error(fault)
    return values


def _c_name(name: str) -> str:
    return name.replace("-", "_")


# ---------------------------------------------------------------------- a whole payload

PAYLOAD_CODES = (
    ("raw", "rice", "eliasfano", "chunks"),
    ("fp32", "bf16", "bf16-rice", "8bit", "4bit", "2bit", "sign"),
)
"""Index codes and value codes that ``write_payload`` and ``read_payload`` know."""

FRAME_BYTES = 8
"""Behind a frame: the size of the payload in it."""

FOREIGN = -100
"""``read_payload`` has found something that it does not know; ``FOREIGN`` in ``csrc/codec_payload.c``."""


class Packed(NamedTuple):
    """A payload, and what its values lost.

    Attributes:
        row: the payload; if it fits into the frame that was asked for, filled up to it, and then its size in 8 bytes.
        size: bytes of the payload alone.
        error: ``[kept]`` what was rounded off each value, None when the value code loses nothing.
    """

    row: Tensor
    size: int
    error: Tensor | None


def write_payload(
    codes: Codes, sparse: SparseGradient, slots: int, frame: int = 0, *, rounding: bool = False
) -> Packed | None:
    """Write float32 entries to a whole payload, in one call; None where the reference has to do it.

    Args:
        codes: of indices and values.
        sparse: entries; with values that are rounded, unless ``rounding``.
        slots: entries to have room for, if the index code can.
        frame: pad a payload of at most this many bytes to it, then append its size in 8 bytes.
        rounding: round to the nearest levels first.
    """
    if not codes.native or sparse.values.dtype != torch.float32 or kernels(sparse.indices) is None:
        return None
    indices, values = sparse.indices.contiguous(), sparse.values.contiguous()
    slots = slots if codes.on_device else sparse.kept
    most, index_bytes = codes.sizes(slots, sparse.numel)
    room = max(most, frame) + SLACK
    payload = torch.empty(room, dtype=torch.uint8, device="cpu")
    spare = torch.empty_like(values)
    write = _function("write", *_WRITE)
    size = write(
        *codes.numbers,
        rounding,
        address(indices, torch.int32),
        address(values, torch.float32, indices.numel()),
        indices.numel(),
        sparse.numel,
        slots,
        index_bytes,
        frame,
        address(payload, torch.uint8, room),
        room,
        address(spare, torch.float32, indices.numel()),
    )
    if size < 0:
        raise error(size)
    row = payload[: frame + FRAME_BYTES if size <= frame else size]
    return Packed(row, size, None if codes.values.exact else spare)


def framed(payload: Tensor, frame: int) -> Tensor:
    """Fill a payload up to a frame that it fits into, and append its size in 8 bytes.

    Example:
        >>> framed(torch.tensor([7, 8], dtype=torch.uint8), 3).tolist()
        [7, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    """
    size = torch.tensor([payload.numel()], device="cpu").view(torch.uint8).to(payload.device, non_blocking=True)
    return torch.cat([payload, payload.new_zeros(frame - payload.numel()), size])


def framed_sizes(rows: Tensor) -> list[int]:
    """Read the sizes behind frames, rows of uint8 ``[rows, frame + 8]``; one synchronisation on an accelerator."""
    sizes: list[int] = rows[:, -FRAME_BYTES:].flatten().clone().view(torch.int64).tolist()
    return sizes


def read_payload(payload: Tensor, codes: Codes, numel: int) -> SparseGradient | None:
    """Read an untrusted payload in one call; None when the reference has to say what is wrong with it, or to read it.

    Args:
        payload: uint8 ``[bytes]``, contiguous.
        codes: that it must have.
        numel: length that it must name.
    """
    if not codes.native or kernels(payload) is None:
        return None
    room = min(numel, 8 * max(0, payload.numel() - HEADER_BYTES) // codes.values.least_bits)  # no more can be in it
    indices = torch.empty(room, dtype=torch.int32, device="cpu")
    values = torch.empty(room, dtype=torch.float32, device="cpu")
    read = _function("read", *_READ)
    count = read(
        address(payload, torch.uint8),
        payload.numel(),
        *codes.numbers,
        numel,
        address(indices, torch.int32, room),
        address(values, torch.float32, room),
        room,
    )
    if count == FOREIGN:
        return None
    if count < 0:
        raise error(count)
    return SparseGradient(indices[:count], values[:count], numel)


_WRITE = (*[c_int64] * 3, c_void_p, c_void_p, *[c_int64] * 5, c_void_p, c_int64, c_void_p)
_READ = (c_void_p, *[c_int64] * 4, c_void_p, c_void_p, c_int64)


@cache
def _function(name: str, *arguments: type[Any]) -> Any:
    function = library()[f"gk_codec_{name}"]  # not an attribute, which others would share with its types
    function.restype, function.argtypes = c_int64, arguments  # of a function without a result it means nothing
    return function
