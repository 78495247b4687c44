"""The codec's C code, when it is built: the same bytes as the reference, many times faster."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gaussiank.ops.backend import kernels
from gaussiank.ops.library import library

from .faults import error

SLACK = 8
"""Bytes behind the result that encoders may write to; ``SLACK`` in ``csrc/codec.h``."""


def built() -> bool:
    """Tell whether there is C code, and ``ops.use_backend`` has not chosen the reference."""
    return kernels() is not None


def runs_on(tensor: Tensor) -> bool:
    """Tell whether C code works on a tensor: it is built, and the tensor lies in the CPU's memory."""
    return tensor.device.type == "cpu" and built()


def encode_indices(name: str, indices: Tensor, numel: int, room: int) -> Tensor:
    """Encode int32 indices with an index code; ``room`` is the most bytes that they can take."""
    indices = indices.contiguous()
    section = torch.empty(room + SLACK, dtype=torch.uint8)
    encode = _function(f"{name}_encode", c_void_p, c_int64, c_int64, c_void_p, c_int64)
    size = encode(indices.data_ptr(), indices.numel(), numel, section.data_ptr(), section.numel())
    if size < 0:
        raise error(size)
    return section[:size]


def decode_indices(name: str, section: Tensor, count: int, numel: int) -> Tensor:
    """Decode ``count`` int32 indices from an untrusted section."""
    section = section.contiguous()
    indices = torch.empty(count, dtype=torch.int32)
    decode = _function(f"{name}_decode", c_void_p, c_int64, c_int64, c_int64, c_void_p)
    size = decode(section.data_ptr(), section.numel(), count, numel, indices.data_ptr())
    if size < 0:
        raise error(size)
    return indices


def round_values(name: str, values: Tensor) -> Tensor:
    """Round float32 ``[count]`` values to the nearest levels of a value code."""
    values = values.contiguous()
    rounded = torch.empty_like(values)
    _function(f"{name}_round", c_void_p, c_int64, c_void_p)(values.data_ptr(), values.numel(), rounded.data_ptr())
    return rounded


def encode_values(name: str, values: Tensor, slots: int, size: int) -> Tensor:
    """Encode rounded float32 ``[count]`` values to a section of ``slots`` values and ``size`` bytes."""
    values = values.contiguous()
    section = torch.empty(size, dtype=torch.uint8)
    encode = _function(f"{name}_encode", c_void_p, c_int64, c_int64, c_void_p)
    encode(values.data_ptr(), values.numel(), slots, section.data_ptr())
    return section


def decode_values(name: str, section: Tensor, count: int, slots: int) -> Tensor:
    """Decode the first ``count`` float32 values of a section that is large enough for ``slots``."""
    section = section.contiguous()
    values = torch.empty(count)
    decode = _function(f"{name}_decode", c_void_p, c_int64, c_int64, c_void_p)
    decode(section.data_ptr(), count, slots, values.data_ptr())
    return values


@cache
def _function(name: str, *arguments: type[Any]) -> Any:
    lib = library()
    assert lib is not None
    function = lib[f"gk_codec_{name}"]  # not an attribute, which others would share with its types
    function.restype, function.argtypes = c_int64, arguments  # of a function without a result it means nothing
    return function
