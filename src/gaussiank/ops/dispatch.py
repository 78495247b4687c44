"""The ops as the other rooms call them: checked, then run by the native kernels where they can, else by the reference.

What each op does stands in ``reference.py``; its text is the help of the functions here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from . import native, reference
from .backend import kernels
from .checks import (
    require_accumulation,
    require_capacity,
    require_hint,
    require_k,
    require_mean_of,
    require_parts,
    require_threshold,
    require_vector,
)
from .results import Moments, Taken, TakenAbove

_F = TypeVar("_F", bound=Callable[..., Any])


def _specified_by(specification: Callable[..., Any]) -> Callable[[_F], _F]:
    def give_text(function: _F) -> _F:
        function.__doc__ = specification.__doc__
        return function

    return give_text


def _for(vector: Tensor) -> int | None:
    """Return the native backend for a float32 vector in this machine's memory, else None."""
    if vector.dtype is not torch.float32 or vector.device.type != "cpu":
        return None
    return kernels()


@_specified_by(reference.accumulate_topk)
def accumulate_topk(
    grad: Tensor, residual: Tensor, k: int, hint: Tensor | None = None, *, out: Tensor | None = None
) -> Taken:
    """Run the reference or a kernel."""
    out = residual if out is None else out
    require_accumulation(grad, residual, out)
    require_k(k, grad.numel())
    require_hint(hint, grad.device)
    backend = _for(residual)
    if backend is None:
        return reference.accumulate_topk(grad, residual, k, hint, out=out)
    return native.accumulate_topk(backend, grad, residual, k, hint, out)


@_specified_by(reference.accumulate_threshold)
def accumulate_threshold(
    grad: Tensor, residual: Tensor, threshold: float, capacity: int, *, out: Tensor | None = None
) -> TakenAbove:
    """Run the reference or a kernel."""
    out = residual if out is None else out
    require_accumulation(grad, residual, out)
    require_threshold(threshold)
    require_capacity(capacity, grad.numel())
    backend = _for(residual)
    if backend is None:
        return reference.accumulate_threshold(grad, residual, threshold, capacity, out=out)
    return native.accumulate_threshold(backend, grad, residual, threshold, capacity, out)


@_specified_by(reference.topk)
def topk(accumulated: Tensor, k: int, hint: Tensor | None = None) -> Taken:
    """Run the reference or a kernel."""
    require_vector(accumulated, "accumulated")
    require_k(k, accumulated.numel())
    require_hint(hint, accumulated.device)
    backend = _for(accumulated)
    if backend is None:
        return reference.topk(accumulated, k, hint)
    return native.topk(backend, accumulated, k, hint)


@_specified_by(reference.select_topk)
def select_topk(accumulated: Tensor, k: int) -> Tensor:
    """Run the reference or a kernel."""
    backend = _for(accumulated)
    if backend is None:
        return reference.select_topk(accumulated, k)
    require_vector(accumulated, "accumulated")
    require_k(k, accumulated.numel())
    return native.topk(backend, accumulated, k, None).indices


@_specified_by(reference.select_above)
def select_above(accumulated: Tensor, threshold: float) -> Tensor:
    """Run the reference or a kernel."""
    require_threshold(threshold)
    backend = _for(accumulated)
    if backend is None or not _readable(accumulated):
        return reference.select_above(accumulated, threshold)
    return native.select_above(backend, accumulated, threshold)


@_specified_by(reference.count_above)
def count_above(magnitude: Tensor, threshold: float) -> int:
    """Run the reference or a kernel."""
    backend = _for(magnitude)
    if backend is None or not _readable(magnitude):
        return reference.count_above(magnitude, threshold)
    return native.count_above(backend, magnitude, threshold)


@_specified_by(reference.moments)
def moments(accumulated: Tensor) -> Moments:
    """Run the reference or a kernel."""
    backend = _for(accumulated)
    if backend is None or not _readable(accumulated):
        return reference.moments(accumulated)
    return native.moments(backend, accumulated)


def _readable(vector: Tensor) -> bool:
    return vector.dim() == 1 and vector.is_contiguous() and 1 <= vector.numel() <= 2**31 - 1


@_specified_by(reference.scatter_mean)
def scatter_mean(parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Run the reference or a kernel."""
    require_mean_of(parts, out)
    backend = _for(out)
    if backend is None:
        return reference.scatter_mean(parts, out)
    return native.scatter_mean(backend, parts, out)


@_specified_by(reference.union)
def union(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Run the reference or a kernel."""
    require_parts(parts)
    if _for(parts[0].values) is None:
        return reference.union(parts)
    return native.union(parts)
