"""The native CPU kernels of ``csrc/``: the library, what it exports, and each op through its C ABI.

Arguments have been checked before, in ``dispatch``; here every buffer that C reads or writes passes ``address``.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch  # first, so that the OpenMP runtime whose threads the kernels share is in the process
from torch import Tensor

from gaussiank.sparse import SparseGradient

from .reference import Magnitudes, Moments, Taken, TakenAbove

KINDS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""Gradient dtypes that the kernels read, with their number in ``csrc/gaussiank.h``."""

ONE_THREAD_BELOW = 256 * 1024
"""Entries below which one thread is faster than waking another."""

STREAM_FROM = 2 * 1024 * 1024
"""Entries from which a separate output is written past the cache, because it would not stay in it anyway."""

_MAX_THREADS = 256
_SCRATCH, _ORDER = 1, 3
_INFINITE, ANY = 0x7F800000, 0x7FFFFFFF  # largest magnitude bits of a number, and of anything
HUGE_PAGE_BYTES = 2 * 1024 * 1024
_ADVISE_FROM_BYTES = 2 * HUGE_PAGE_BYTES

# ---------------------------------------------------------------------- the library

ABI = 8
LIBRARY = "GAUSSIANK_NATIVE_LIBRARY"
"""Environment variable with the path of another build of the kernels, one with a sanitizer say; empty for none."""

_TYPES = {"i": c_int32, "l": c_int64, "f": c_float, "p": c_void_p, "s": ctypes.c_char_p, "": None}
_SIGNATURES = {  # name: result and arguments, one letter each, in the order of csrc/*.c
    "gk_set_parallel": ("", "p"),
    "gk_backend": ("s", "i"),
    "gk_topk_bytes": ("l", "lli"),
    "gk_topk_take": ("i", "ippipillppppplip"),
    "gk_chunk_topk_bytes": ("l", "li"),
    "gk_chunk_topk": ("i", "ipllpppli"),
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
def library() -> Any:
    """Load the kernels, once; None when the package was installed without them.

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


def address(tensor: Tensor, dtype: torch.dtype, numel: int | None = None) -> int:
    """Return the address of a buffer for C code, which writes and reads as far as it is told.

    Args:
        tensor: contiguous, on a CPU.
        dtype: what the C code takes it for.
        numel: entries that it must have; None where the C code is told how many there are.

    Raises:
        ValueError: it is not of that size, of that dtype, or on another device.
    """
    wanted = tensor.numel() if numel is None else numel
    if tensor.dtype != dtype or tensor.numel() != wanted or not tensor.is_cpu:
        raise ValueError(
            f"buffer of a kernel must hold {wanted} entries of {dtype} on a CPU, got {tensor.numel()} of "
            f"{tensor.dtype} on {tensor.device}. Name dtype and device where it is made."
        )
    return tensor.data_ptr()


def _openmp() -> int | None:
    """Find torch's own OpenMP in the process; None when it has none, then one thread runs."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, c_void_p).value if function is not None else None


@cache
def numbers() -> dict[str, int]:
    """Return the backends that the processor can run, fastest last: name -> number for the kernels."""
    lib = library()
    found = [] if lib is None else [(lib.gk_backend(number), number) for number in range(3)]
    return {name.decode(): number for name, number in found if name is not None}


def _refused(status: int) -> ValueError:
    assert status == _ORDER, f"kernel returned {status}"
    return ValueError(
        "parts must hold indices that ascend within [0, numel), got others. SparseGradient.check() names the place."
    )


# ---------------------------------------------------------------------- memory and threads


def residual_buffer(numel: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Make a vector of zeros that the kernels read and write fastest.

    On a CPU it starts at a multiple of 64 bytes; from 4 MiB on at one of 2 MiB, with huge pages advised (they saved
    10 to 20 % of a pass over memory on an AMD EPYC, 2026-11). The advice is only that: without it the buffer works too.

    Args:
        numel: entries, at least 0.
        dtype: dtype of the residual.
        device: where it lies; elsewhere than on a CPU, it is what ``torch.zeros`` makes.

    Returns:
        ``[numel]`` zeros.

    Raises:
        ValueError: ``numel`` is negative.

    Example:
        >>> residual_buffer(3)
        tensor([0., 0., 0.])
    """
    if numel < 0:
        raise ValueError(f"numel must be at least 0, got {numel}. Count the entries of the vector.")
    wanted = numel * dtype.itemsize
    if torch.device(device).type != "cpu" or wanted < _ADVISE_FROM_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numel, dtype=dtype, device=device)
    pages = mmap.mmap(-1, wanted + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = torch.frombuffer(pages, dtype=torch.uint8)
    start = -block.data_ptr() % HUGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return block[start : start + wanted].view(dtype)  # fresh pages are zeros


class _Scratch(threading.local):
    """Working memory of a thread; grows to what its largest vector needed, about an eighth of that vector."""

    block: Tensor | None = None
    room = 0
    address = 0

    def at_least(self, wanted: int) -> int:
        if wanted > self.room:
            self.block = torch.empty(wanted, dtype=torch.uint8, device="cpu")
            self.room, self.address = wanted, self.block.data_ptr()
        return self.address


_scratch = _Scratch()


def _threads(numel: int) -> int:
    return 1 if numel < ONE_THREAD_BELOW else min(torch.get_num_threads(), _MAX_THREADS)


@lru_cache(maxsize=4096)
def _topk_bytes(numel: int, k: int, threads: int) -> int:
    return int(library().gk_topk_bytes(numel, k, threads))


# ---------------------------------------------------------------------- the ops


def take(
    backend: int, residual: Tensor, k: int, hint: Tensor | None, grad: Tensor | None = None, out: Tensor | None = None
) -> Taken:
    """Run ``reference.accumulate_topk``, or ``reference.topk`` of ``residual`` where there is no ``grad``."""
    numel = residual.numel()
    threads = _threads(numel)
    room = _topk_bytes(numel, k, threads)
    indices = torch.empty(k, dtype=torch.int32, device="cpu")
    values = torch.empty(k, dtype=torch.float32, device="cpu")
    next_hint = torch.empty((), dtype=torch.float32, device="cpu")
    if hint is not None and hint.dtype != torch.float32:
        hint = hint.float()
    status = library().gk_topk_take(
        backend,
        address(residual, torch.float32, numel),
        None if grad is None else address(grad, grad.dtype, numel),
        0 if grad is None else KINDS[grad.dtype],
        None if out is None else address(out, torch.float32, numel),
        out is not None and out is not residual and numel >= STREAM_FROM and out.data_ptr() % 64 == 0,
        numel,
        k,
        None if hint is None else address(hint, torch.float32, 1),
        address(next_hint, torch.float32, 1),
        address(indices, torch.int32, k),
        address(values, torch.float32, k),
        _scratch.at_least(room),
        room,
        threads,
        report,
    )
    if status:
        raise _refused(status)
    return Taken(indices, values, next_hint)


def chunk_topk(backend: int, accumulated: Tensor, chunk: int, shares: Tensor) -> Tensor:
    """Run ``reference.chunk_topk``."""
    numel, ends = accumulated.numel(), shares.cumsum(0)
    threads = _threads(numel)
    room = library().gk_chunk_topk_bytes(chunk, threads)
    indices = torch.empty(int(ends[-1]), dtype=torch.int32, device="cpu")
    status = library().gk_chunk_topk(
        backend,
        address(accumulated, torch.float32, numel),
        numel,
        chunk,
        address(ends, torch.int64, -(-numel // chunk)),
        address(indices, torch.int32),
        _scratch.at_least(room),
        room,
        threads,
    )
    if status:
        raise _refused(status)
    return indices


report = (c_int64 * 3)()
"""Of the last exact selection in the process: passes, candidates, what the limit came from; for measurements."""


def accumulate_threshold(
    backend: int, grad: Tensor, residual: Tensor, threshold: float, capacity: int, out: Tensor
) -> TakenAbove:
    """Run ``reference.accumulate_threshold``."""
    measured = (c_double * 5)()
    indices, values, count = take_above(backend, residual, threshold, capacity, ANY, grad, out, measured)
    return TakenAbove(indices, values, count, _as_moments(measured))


def select_above(backend: int, accumulated: Tensor, threshold: float) -> Tensor:
    """Run ``reference.select_above``."""
    return take_above(backend, accumulated, threshold, accumulated.numel(), _INFINITE, None, None, None)[0]


def take_above(
    backend: int,
    residual: Tensor,
    threshold: float,
    capacity: int,
    last_key: int,
    grad: Tensor | None,
    out: Tensor | None,
    measured: ctypes.Array[c_double] | None,
) -> tuple[Tensor, Tensor, int]:
    """Take what is above a threshold, with keys up to ``last_key``; ``measured`` gets the sum's moments, if given."""
    lib, numel = library(), residual.numel()
    threads = _threads(numel)
    room = lib.gk_threshold_bytes(numel, capacity, threads)
    indices = torch.empty(capacity, dtype=torch.int32, device="cpu")
    values = torch.empty(capacity, dtype=torch.float32, device="cpu")
    counts = (c_int64 * 2)()
    status = lib.gk_threshold_take(
        backend,
        address(residual, torch.float32, numel),
        None if grad is None else address(grad, grad.dtype, numel),
        0 if grad is None else KINDS[grad.dtype],
        None if out is None else address(out, torch.float32, numel),
        out is not None and out is not residual and numel >= STREAM_FROM and out.data_ptr() % 64 == 0,
        numel,
        threshold,
        last_key,
        capacity,
        address(indices, torch.int32, capacity),
        address(values, torch.float32, capacity),
        counts,
        measured,
        _scratch.at_least(room),
        room,
        threads,
    )
    if status:
        raise _refused(status)
    kept, count = counts
    if kept < capacity:  # a copy, so that no result holds on to memory that it does not use
        indices, values = indices[:kept].clone(), values[:kept].clone()
    return indices, values, count


def moments(backend: int, accumulated: Tensor) -> Moments:
    """Run ``reference.moments``."""
    numel = accumulated.numel()
    lib, measured = library(), (c_double * 5)()
    room = lib.gk_moments_bytes(numel)
    scratch = _scratch.at_least(room)
    status = lib.gk_moments(
        backend, address(accumulated, torch.float32, numel), numel, measured, scratch, room, _threads(numel)
    )
    if status:
        raise _refused(status)
    return _as_moments(measured)


def _as_moments(measured: ctypes.Array[c_double]) -> Moments:
    mean, std, mean_abs, max_abs, finite = measured
    four = torch.tensor([mean, std, mean_abs, max_abs], dtype=torch.float32, device="cpu")
    return Moments(four[0], four[1], four[2], four[3], torch.tensor(finite != 0, device="cpu"))


def count_above(backend: int, magnitude: Tensor, threshold: float) -> int:
    """Run ``reference.count_above``."""
    numel = magnitude.numel()
    return int(
        library().gk_count_above(backend, address(magnitude, torch.float32, numel), numel, threshold, _threads(numel))
    )


def magnitudes(vector: Tensor, numels: Sequence[int], found: Magnitudes) -> Magnitudes:
    """Fill ``found``, which holds zeros, with what ``histogram.reference_magnitudes`` counts."""
    bits, part_bits = ((bins // 256).bit_length() - 1 for bins in (found.counts.shape[1], found.part_counts.shape[2]))
    scratch = torch.zeros(4 * found.counts.shape[1], dtype=torch.int64, device="cpu")
    lengths = (c_int64 * len(numels))(*numels)
    kinds = torch.int64, torch.float64, torch.int64, torch.float64
    tables = [address(table, kind, table.numel()) for table, kind in zip(found, kinds, strict=True)]
    status = library().gk_magnitudes(
        address(vector, torch.float32, sum(numels)),
        lengths,
        len(numels),
        bits,
        part_bits,
        *tables,
        address(scratch, torch.int64, 4 * found.counts.shape[1]),
    )
    if status:
        raise _refused(status)
    return found


class _Parts:
    """Addresses and lengths of P sparse vectors, as the kernels read them."""

    def __init__(self, parts: Sequence[SparseGradient], threads: int) -> None:
        count, kept = len(parts), [part.kept for part in parts]
        self.tensors = [(part.indices.contiguous(), part.values.contiguous()) for part in parts]
        self.indices = (c_void_p * count)(
            *[address(one, torch.int32, n) for (one, _), n in zip(self.tensors, kept, strict=True)]
        )
        self.values = (c_void_p * count)(
            *[address(one, torch.float32, n) for (_, one), n in zip(self.tensors, kept, strict=True)]
        )
        self.kept = (c_int64 * count)(*kept)
        self.room = library().gk_scatter_bytes(parts[0].numel, count, threads)
        self.scratch = _scratch.at_least(self.room)


def scatter_mean(backend: int, parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Run ``reference.scatter_mean``."""
    numel = out.numel()
    threads = _threads(numel)
    read = _Parts(parts, threads)
    finite = torch.empty((), dtype=torch.bool, device="cpu")
    status = library().gk_scatter_mean(
        backend,
        read.indices,
        read.values,
        read.kept,
        len(parts),
        address(out, torch.float32, numel),
        address(finite, torch.bool, 1),
        numel,
        numel >= STREAM_FROM,
        read.scratch,
        read.room,
        threads,
    )
    if status:
        raise _refused(status)
    return finite


def union(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Run ``reference.union``."""
    numel, most = parts[0].numel, sum(part.kept for part in parts)
    threads = _threads(numel)
    read = _Parts(parts, threads)
    indices = torch.empty(most, dtype=torch.int32, device="cpu")
    values, count = torch.empty(most, dtype=torch.float32, device="cpu"), c_int64()
    status = library().gk_union(
        read.indices,
        read.values,
        read.kept,
        len(parts),
        numel,
        address(indices, torch.int32, most),
        address(values, torch.float32, most),
        ctypes.byref(count),
        read.scratch,
        read.room,
        threads,
    )
    if status:
        raise _refused(status)
    if count.value < most:
        indices, values = indices[: count.value].clone(), values[: count.value].clone()
    return SparseGradient(indices, values, numel)
