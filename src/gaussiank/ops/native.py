"""The native CPU kernels, called through their C ABI. Arguments have been checked before."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from .library import address, library
from .results import Magnitudes, Moments, Taken, TakenAbove

KINDS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""Gradient dtypes that the kernels read, with their number in ``csrc/gaussiank.h``."""

ONE_THREAD_BELOW = 256 * 1024
"""Entries below which one thread is faster than waking another."""

STREAM_FROM = 2 * 1024 * 1024
"""Entries from which a separate output is written past the cache, because it would not stay in it anyway."""

_MAX_THREADS = 256
_SCRATCH, _ORDER = 1, 3
_INFINITE, ANY = 0x7F800000, 0x7FFFFFFF  # largest magnitude bits of a number, and of anything


def _lib() -> ctypes.CDLL:
    lib = library()
    assert lib is not None
    return lib


def _require(status: int) -> None:
    if status == _ORDER:
        raise ValueError(
            "parts must hold indices that ascend within [0, numel), got others. SparseGradient.check() names the place."
        )
    assert status == 0, f"kernel returned {status}"


# ---------------------------------------------------------------------- threads and scratch memory


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
    return int(_lib().gk_topk_bytes(numel, k, threads))


def _stream(out: Tensor, residual: Tensor) -> bool:
    return out is not residual and out.numel() >= STREAM_FROM and out.data_ptr() % 64 == 0


# ---------------------------------------------------------------------- the ops


def accumulate_topk(backend: int, grad: Tensor, residual: Tensor, k: int, hint: Tensor | None, out: Tensor) -> Taken:
    """Run ``reference.accumulate_topk``."""
    return _take(backend, residual, k, hint, grad, out)


def topk(backend: int, accumulated: Tensor, k: int, hint: Tensor | None) -> Taken:
    """Run ``reference.topk``."""
    return _take(backend, accumulated, k, hint, None, None)


def _take(
    backend: int, residual: Tensor, k: int, hint: Tensor | None, grad: Tensor | None, out: Tensor | None
) -> Taken:
    numel = residual.numel()
    threads = _threads(numel)
    room = _topk_bytes(numel, k, threads)
    indices = torch.empty(k, dtype=torch.int32, device="cpu")
    values = torch.empty(k, dtype=torch.float32, device="cpu")
    next_hint = torch.empty((), dtype=torch.float32, device="cpu")
    if hint is not None and hint.dtype != torch.float32:
        hint = hint.float()
    _require(
        _lib().gk_topk_take(
            backend,
            address(residual, torch.float32, numel),
            None if grad is None else address(grad, grad.dtype, numel),
            0 if grad is None else KINDS[grad.dtype],
            None if out is None else address(out, torch.float32, numel),
            out is not None and _stream(out, residual),
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
    )
    return Taken(indices, values, next_hint)


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
    lib, numel = _lib(), residual.numel()
    threads = _threads(numel)
    room = lib.gk_threshold_bytes(numel, capacity, threads)
    indices = torch.empty(capacity, dtype=torch.int32, device="cpu")
    values = torch.empty(capacity, dtype=torch.float32, device="cpu")
    counts = (c_int64 * 2)()
    _require(
        lib.gk_threshold_take(
            backend,
            address(residual, torch.float32, numel),
            None if grad is None else address(grad, grad.dtype, numel),
            0 if grad is None else KINDS[grad.dtype],
            None if out is None else address(out, torch.float32, numel),
            out is not None and _stream(out, residual),
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
    )
    kept, count = counts
    if kept < capacity:  # a copy, so that no result holds on to memory that it does not use
        indices, values = indices[:kept].clone(), values[:kept].clone()
    return indices, values, count


def moments(backend: int, accumulated: Tensor) -> Moments:
    """Run ``reference.moments``."""
    numel = accumulated.numel()
    lib, measured = _lib(), (c_double * 5)()
    room = lib.gk_moments_bytes(numel)
    scratch = _scratch.at_least(room)
    _require(
        lib.gk_moments(
            backend, address(accumulated, torch.float32, numel), numel, measured, scratch, room, _threads(numel)
        )
    )
    return _as_moments(measured)


def _as_moments(measured: ctypes.Array[c_double]) -> Moments:
    mean, std, mean_abs, max_abs, finite = measured
    four = torch.tensor([mean, std, mean_abs, max_abs], dtype=torch.float32, device="cpu")
    return Moments(four[0], four[1], four[2], four[3], torch.tensor(finite != 0, device="cpu"))


def count_above(backend: int, magnitude: Tensor, threshold: float) -> int:
    """Run ``reference.count_above``."""
    numel = magnitude.numel()
    return int(
        _lib().gk_count_above(backend, address(magnitude, torch.float32, numel), numel, threshold, _threads(numel))
    )


def magnitudes(vector: Tensor, numels: Sequence[int], found: Magnitudes) -> Magnitudes:
    """Fill ``found``, which holds zeros, with what ``magnitudes.reference_magnitudes`` counts."""
    bits, part_bits = ((bins // 256).bit_length() - 1 for bins in (found.counts.shape[1], found.part_counts.shape[2]))
    scratch = torch.zeros(4 * found.counts.shape[1], dtype=torch.int64, device="cpu")
    lengths = (c_int64 * len(numels))(*numels)
    kinds = torch.int64, torch.float64, torch.int64, torch.float64
    tables = [address(table, kind, table.numel()) for table, kind in zip(found, kinds, strict=True)]
    status = _lib().gk_magnitudes(
        address(vector, torch.float32, sum(numels)),
        lengths,
        len(numels),
        bits,
        part_bits,
        *tables,
        address(scratch, torch.int64, 4 * found.counts.shape[1]),
    )
    _require(status)
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
        self.room = _lib().gk_scatter_bytes(parts[0].numel, count, threads)
        self.scratch = _scratch.at_least(self.room)


def scatter_mean(backend: int, parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Run ``reference.scatter_mean``."""
    numel = out.numel()
    threads = _threads(numel)
    read = _Parts(parts, threads)
    finite = torch.empty((), dtype=torch.bool, device="cpu")
    _require(
        _lib().gk_scatter_mean(
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
    )
    return finite


def union(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Run ``reference.union``."""
    numel, most = parts[0].numel, sum(part.kept for part in parts)
    threads = _threads(numel)
    read = _Parts(parts, threads)
    indices = torch.empty(most, dtype=torch.int32, device="cpu")
    values, count = torch.empty(most, dtype=torch.float32, device="cpu"), c_int64()
    _require(
        _lib().gk_union(
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
    )
    if count.value < most:
        indices, values = indices[: count.value].clone(), values[: count.value].clone()
    return SparseGradient(indices, values, numel)
