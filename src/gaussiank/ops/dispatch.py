"""The ops' one door: what is refused, which backend runs, and each op, by the kernels where they can, else in PyTorch.

What each op does stands in ``reference.py``; its text is the help of the functions here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gaussiank.sparse import MAX_NUMEL, SparseGradient

from . import accelerator, native, reference
from .reference import Moments, Taken, TakenAbove
from .rows import NarrowMean, RowFormat

# ---------------------------------------------------------------------- which backend runs

VARIABLE = "GAUSSIANK_BACKEND"
"""Environment variable that names the backend of a process; unset, the fastest available one runs."""

TRITON = "triton"
"""Name of the backend for CUDA; on a CPU, for tests, of Triton's interpreter, where ``TRITON_INTERPRET=1``."""

_chosen: str | None = None
_asked = False  # whether somebody has chosen it: else it is what serves the CPU best, and binds no GPU


class Backends(NamedTuple):
    """Backends of this process.

    Attributes:
        available: names, fastest last; ``reference`` is always there.
        active: name of the one that runs.
    """

    available: tuple[str, ...]
    active: str


def available() -> tuple[str, ...]:
    """Return the names of the backends that this machine can run, fastest last."""
    return ("reference", *([TRITON] if accelerator.interpreted() else []), *native.numbers())


def active() -> str:
    """Return the name of the backend that runs.

    Raises:
        ValueError: the environment asks for one that this machine cannot run.
    """
    global _chosen, _asked
    if _chosen is None:
        asked = os.environ.get(VARIABLE)
        _chosen, _asked = _checked(asked or available()[-1], VARIABLE), bool(asked)
    return _chosen


def backends() -> Backends:
    """Tell which backends this machine can run, and which one runs.

    ``reference`` is plain PyTorch, on any device. The others are the native CPU kernels, for float32 residuals:
    ``scalar`` (``neon`` on arm64), ``avx2``, ``avx512``. All give the same bits. The environment variable
    ``GAUSSIANK_BACKEND`` chooses one for a process. On CUDA kernels in Triton run where they can, unless ``reference``
    was chosen (docs/gpu.md).

    Returns:
        The names.

    Raises:
        ValueError: the environment asks for one that this machine cannot run.

    Example:
        >>> backends().available[0]
        'reference'
    """
    return Backends(available(), active())


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops of the whole process, all threads, with one backend; for tests and measurements.

    Args:
        name: one of ``backends().available``.

    Raises:
        ValueError: this machine cannot run it.

    Example:
        >>> with use_backend("reference"):
        ...     backends().active
        'reference'
    """
    global _chosen, _asked
    before, (_chosen, _asked) = (_chosen, _asked), (_checked(name, "name"), True)
    try:
        yield
    finally:
        _chosen, _asked = before


def kernels(tensor: Tensor | None = None) -> int | None:
    """Return the number of the native backend, or None where the reference runs, chosen or on another device."""
    return native.numbers().get(_chosen or active()) if tensor is None or tensor.device.type == "cpu" else None


def _checked(name: str, argument: str) -> str:
    if name not in available():
        raise ValueError(
            f"{argument} must be one of {', '.join(available())} on this machine, got {name!r}. "
            "Install gaussiank where there is a C compiler to have the native ones."
        )
    return name


# ---------------------------------------------------------------------- what is refused

RESIDUAL_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""Gradient dtype -> dtype of its residual, of the values sent and of the sum."""


def require_vector(vector: Tensor, argument: str) -> None:
    """Raise unless ``vector`` is a flat, contiguous, non-empty floating tensor that int32 can index.

    Raises:
        ValueError: it is not; names ``argument``.

    Example:
        >>> require_vector(torch.zeros(2, 2), "grad")
        Traceback (most recent call last):
            ...
        ValueError: grad must be flat and contiguous, got shape (2, 2) with strides (2, 1). Pass grad.reshape(-1).
    """
    if vector.dtype not in RESIDUAL_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in RESIDUAL_DTYPES)
        raise ValueError(f"{argument} must be one of {names}, got {vector.dtype}. Convert it first.")
    if vector.layout != torch.strided:
        raise ValueError(f"{argument} must be a dense tensor, got layout {vector.layout}. Pass {argument}.to_dense().")
    if vector.dim() != 1 or not vector.is_contiguous():
        raise ValueError(
            f"{argument} must be flat and contiguous, got shape {tuple(vector.shape)} with strides "
            f"{vector.stride()}. Pass {argument}.reshape(-1)."
        )
    if not 1 <= vector.numel() <= MAX_NUMEL:
        raise ValueError(
            f"{argument} must have 1 to {MAX_NUMEL} entries, got {vector.numel()}. "
            "Leave out empty vectors and split long ones."
        )


def require_k(k: int, numel: int) -> None:
    """Raise ``ValueError`` unless ``k`` is in ``[1, numel]``."""
    if not 1 <= k <= numel:
        raise ValueError(f"k must be in [1, numel = {numel}], got {k}. Ask for at least one entry and at most all.")


def require_accumulation(grad: Tensor, residual: Tensor, out: Tensor) -> None:
    """Raise unless ``out`` can take ``residual + grad`` in one pass.

    Raises:
        ValueError: one of them is no vector, they do not fit each other, or ``out`` shares memory with one of the
            others other than being ``residual`` itself.
    """
    require_vector(grad, "grad")
    dtype, numel, device = RESIDUAL_DTYPES[grad.dtype], grad.numel(), grad.device
    for name, vector in (("residual", residual),) if out is residual else (("residual", residual), ("out", out)):
        if vector.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} for a {grad.dtype} grad, got {vector.dtype}. Convert it.")
        require_vector(vector, name)
        if vector.numel() != numel:
            raise ValueError(f"{name} must have grad's {numel} entries, got {vector.numel()}. Pass vectors that fit.")
        if vector.device != device:
            raise ValueError(f"{name} must be on grad's device {device}, got {vector.device}. Move one of them.")
    start = out.data_ptr() if device.type != "meta" else 0
    if not start:  # without memory: of "meta", or of torch's FakeTensorMode
        return
    end = start + out.numel() * out.element_size()
    if out is not residual:
        other = residual.data_ptr()
        if other != start and other < end and start < other + residual.numel() * residual.element_size():
            raise ValueError("out must be residual or apart from it, got one that overlaps it. Use another buffer.")
    other = grad.data_ptr()
    if other < end and start < other + grad.numel() * grad.element_size():
        name = "residual" if out is residual else "out"
        raise ValueError(f"{name} must be apart from grad, got one that overlaps it. Use another buffer.")


def require_topk(vector: Tensor, k: int, hint: Tensor | None) -> None:
    """Raise ``ValueError`` unless k is in ``[1, numel]`` and ``hint`` is None or a floating 0-d tensor beside it."""
    if not 1 <= k <= vector.numel():
        require_k(k, vector.numel())
    if hint is not None and (hint.dim() or not hint.is_floating_point() or hint.device != vector.device):
        raise ValueError(
            f"hint must be a 0-d floating tensor on {vector.device}, got {hint.dtype} of shape {tuple(hint.shape)} on "
            f"{hint.device}. Pass the hint that the last call returned."
        )


def require_threshold(threshold: float) -> None:
    """Raise ``ValueError`` when ``threshold`` is NaN."""
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan. Look for NaN in what it was computed from.")


def require_capacity(capacity: int, numel: int) -> None:
    """Raise ``ValueError`` unless ``capacity`` is in ``[1, numel]``."""
    if not 1 <= capacity <= numel:
        raise ValueError(f"capacity must be in [1, numel = {numel}], got {capacity}. Make room for one entry at least.")


def require_shares(shares: Tensor, chunk: int, numel: int) -> None:
    """Raise ``ValueError`` unless there is a share for each chunk, none negative or above its entries, not all 0."""
    chunks = -(-numel // chunk) if 1 <= chunk <= numel else 0
    if shares.shape != (chunks,) or shares.dtype != torch.int64 or not shares.is_cpu:
        raise ValueError(
            f"shares must be int64 on the CPU, one for each of {chunks} chunks of {chunk} in {numel} entries, got "
            f"{shares.dtype} of shape {tuple(shares.shape)} on {shares.device}. Count with chunk in [1, numel]."
        )
    lowest, highest, last = int(shares.min()), int(shares.max()), int(shares[-1])
    if lowest < 0 or not 0 < highest <= chunk or last > numel - (chunks - 1) * chunk:
        raise ValueError(
            f"shares must be in [0, entries of the chunk] and not all 0, got {lowest} to {highest}, the last {last}. "
            "Give no chunk more than it has."
        )


def require_parts(parts: Sequence[SparseGradient], out: Tensor | None = None) -> None:
    """Raise unless there are parts, all of one length, dtype and device, and ``out``, if given, can take their mean.

    Raises:
        ValueError: there is none, or one or ``out`` does not fit the first.
    """
    if not parts:
        raise ValueError("parts must hold at least one sparse gradient, got none. Pass one for each worker.")
    first = parts[0]
    numel, dtype, device = first.numel, first.values.dtype, first.values.device
    for rank, part in enumerate(parts):
        if part.numel != numel or part.values.dtype != dtype or part.values.device != device:
            raise ValueError(
                f"parts must be alike, got {part.numel} entries of {part.values.dtype} on {part.values.device} in part "
                f"{rank} and {numel} of {dtype} on {device} in part 0. Decode all with the same numel and dtype."
            )
    if out is None:
        return
    require_vector(out, "out")
    if out.numel() != numel or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out must fit its parts of {numel} entries of {dtype} on {device}, got {out.numel()} of {out.dtype} on "
            f"{out.device}. Pass another buffer."
        )


# ---------------------------------------------------------------------- the ops

_F = TypeVar("_F", bound=Callable[..., Any])


def _specified_by(specification: Callable[..., Any]) -> Callable[[_F], _F]:
    def give_text(function: _F) -> _F:
        function.__doc__ = specification.__doc__
        return function

    return give_text


def _triton(vector: Tensor) -> Any:
    """Return the kernels in Triton for a float32 vector on a device that they run on, else None."""
    if vector.dtype is not torch.float32 or (vector.is_cpu and _chosen != TRITON):
        return None
    return None if (_chosen or active()) == "reference" and _asked else accelerator.kernels(vector.device)


def _for(vector: Tensor) -> int | None:
    """Return the native backend for a float32 vector in this machine's memory, else None."""
    if vector.dtype is not torch.float32 or vector.device.type != "cpu":
        return None
    return native.numbers().get(_chosen or active())


@_specified_by(reference.accumulate_topk)
def accumulate_topk(
    grad: Tensor,
    residual: Tensor,
    k: int,
    hint: Tensor | None = None,
    *,
    out: Tensor | None = None,
    row: RowFormat | None = None,
) -> Taken:
    """Run the reference or a kernel."""
    out = residual if out is None else out
    require_accumulation(grad, residual, out)
    require_topk(grad, k, hint)
    backend = _for(residual)
    if backend is not None:
        return native.take(backend, residual, k, hint, grad, out)
    found = _triton(residual)
    if found is None:
        return reference.accumulate_topk(grad, residual, k, hint, out=out)
    fits = row is not None and (row.slots, row.numel) == (k, grad.numel())
    taken: Taken = found.take(residual, k, hint, grad, out, row if fits else None)
    return taken


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
    require_topk(accumulated, k, hint)
    backend = _for(accumulated)
    if backend is not None:
        return native.take(backend, accumulated, k, hint)
    found = _triton(accumulated)
    taken: Taken = reference.topk(accumulated, k, hint) if found is None else found.take(accumulated, k, hint)
    return taken


@_specified_by(reference.select_topk)
def select_topk(accumulated: Tensor, k: int) -> Tensor:
    """Run the reference or a kernel."""
    require_vector(accumulated, "accumulated")
    require_k(k, accumulated.numel())
    backend = _for(accumulated)
    if backend is not None:
        return native.take(backend, accumulated, k, None).indices
    found = _triton(accumulated)
    chosen: Tensor = (
        reference.select_topk(accumulated, k) if found is None else found.take(accumulated, k, None).indices
    )
    return chosen


@_specified_by(reference.chunk_topk)
def chunk_topk(accumulated: Tensor, chunk: int, shares: Tensor) -> Tensor:
    """Run the reference or a kernel."""
    require_vector(accumulated, "accumulated")
    require_shares(shares, chunk, accumulated.numel())
    backend = _for(accumulated)
    if backend is None:
        return reference.chunk_topk(accumulated, chunk, shares)
    return native.chunk_topk(backend, accumulated, chunk, shares)


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
    require_parts(parts, out)
    backend = _for(out)
    if backend is None:
        return reference.scatter_mean(parts, out)
    return native.scatter_mean(backend, parts, out)


def mean_of_rows(
    rows: Tensor, layout: RowFormat, out: Tensor, narrow: NarrowMean | None = None, counters: Tensor | None = None
) -> Tensor | None:
    """Write the mean of what workers have sent to ``out``, straight from their rows, where a kernel can.

    Args:
        rows: uint8 ``[world_size, bytes]``.
        layout: of each.
        out: float32 ``[numel]``; overwritten.
        narrow: what becomes the mean in its place; ``out`` is left with the sum.
        counters: what stands behind the row that a kernel has written of this worker; None: they are made.

    Returns:
        Whether all of it is finite, rounded to 16 bits too, as a 0-d bool tensor; None: there is no kernel, and
        nothing has been written.
    """
    found = _triton(out)
    if found is None or not layout.holds(rows) or rows.device != out.device:
        return None
    finite: Tensor = found.mean_of_rows(rows, layout, out, narrow, counters)
    return finite


@_specified_by(reference.union)
def union(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Run the reference or a kernel."""
    require_parts(parts)
    if _for(parts[0].values) is None:
        return reference.union(parts)
    return native.union(parts)
