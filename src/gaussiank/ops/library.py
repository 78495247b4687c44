"""The compiled library of ``csrc/``: where it is, what it exports, which backends of it the processor can run."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch  # first, so that the OpenMP runtime whose threads the kernels share is in the process
from torch import Tensor

ABI = 7
LIBRARY = "GAUSSIANK_NATIVE_LIBRARY"
"""Environment variable with the path of another build of the kernels, one with a sanitizer say; empty for none."""

_TYPES = {"i": c_int32, "l": c_int64, "f": c_float, "p": c_void_p, "s": ctypes.c_char_p, "": None}
_SIGNATURES = {  # name: result and arguments, one letter each, in the order of csrc/*.c
    "gk_set_parallel": ("", "p"),
    "gk_backend": ("s", "i"),
    "gk_topk_bytes": ("l", "lli"),
    "gk_topk_take": ("i", "ippipillppppplip"),
    "gk_threshold_bytes": ("l", "lli"),
    "gk_threshold_take": ("i", "ippipilfilpppppli"),
    "gk_moments_bytes": ("l", "l"),
    "gk_moments": ("i", "iplppli"),
    "gk_count_above": ("l", "iplfi"),
    "gk_magnitudes": ("i", "ppliippppp"),
    "gk_scatter_bytes": ("l", "lli"),
    "gk_scatter_mean": ("i", "ippplpplipli"),
    "gk_union": ("i", "pppllppppli"),
}


@cache
def library() -> ctypes.CDLL | None:
    """Load the kernels; None when the package was installed without them.

    Raises:
        RuntimeError: the library belongs to another version of the package.
    """
    built = sorted(str(path) for path in Path(__file__).parent.glob("_kernels*.so"))
    path = os.environ.get(LIBRARY, built[0] if built else "")
    if not path:
        return None
    lib = ctypes.CDLL(path)
    if lib.gk_abi() != ABI:
        raise RuntimeError(f"{path} must have ABI {ABI}, got {lib.gk_abi()}. Install gaussiank again to rebuild it.")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = _TYPES[result], [_TYPES[letter] for letter in arguments]
    lib.gk_set_parallel(_openmp())
    return lib


def address(tensor: Tensor, dtype: torch.dtype, numel: int) -> int:
    """Return the address of a buffer for C code, which writes and reads as far as it is told.

    Args:
        tensor: contiguous, on a CPU.
        dtype: what the C code takes it for.
        numel: entries that it must have.

    Raises:
        ValueError: it is not of that size, of that dtype, or on another device.
    """
    if tensor.dtype != dtype or tensor.numel() != numel or not tensor.is_cpu:
        raise ValueError(
            f"buffer of a kernel must hold {numel} entries of {dtype} on a CPU, got {tensor.numel()} of {tensor.dtype} "
            f"on {tensor.device}. Name dtype and device where it is made."
        )
    return tensor.data_ptr()


def _openmp() -> int | None:
    """Find torch's own OpenMP in the process; None when it has none, then one thread runs."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, c_void_p).value if function is not None else None


@cache
def _numbers() -> dict[str, int]:
    lib = library()
    found = [] if lib is None else [(lib.gk_backend(number), number) for number in range(3)]
    return {name.decode(): number for name, number in found if name is not None}


def names() -> tuple[str, ...]:
    """Return the names of the backends that the processor can run, fastest last."""
    return tuple(_numbers())


def number(name: str) -> int | None:
    """Return a backend's number, or None for one that is not native."""
    return _numbers().get(name)
