"""What every op refuses, whichever backend runs it: checked once, at the door."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gaussiank.sparse import MAX_NUMEL, SparseGradient

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
    if device.type != "meta":
        _require_apart(grad, residual, out)


def _require_apart(grad: Tensor, residual: Tensor, out: Tensor) -> None:
    start = out.data_ptr()
    end = start + out.numel() * out.element_size()
    if out is not residual:
        other = residual.data_ptr()
        if other != start and other < end and start < other + residual.numel() * residual.element_size():
            raise ValueError("out must be residual or apart from it, got one that overlaps it. Use another buffer.")
    other = grad.data_ptr()
    if other < end and start < other + grad.numel() * grad.element_size():
        name = "residual" if out is residual else "out"
        raise ValueError(f"{name} must be apart from grad, got one that overlaps it. Use another buffer.")


def require_hint(hint: Tensor | None, device: torch.device) -> None:
    """Raise ``ValueError`` unless ``hint`` is None or a floating 0-d tensor on ``device``."""
    if hint is not None and (hint.dim() or not hint.is_floating_point() or hint.device != device):
        raise ValueError(
            f"hint must be a 0-d floating tensor on {device}, got {hint.dtype} of shape {tuple(hint.shape)} on "
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


def require_parts(parts: Sequence[SparseGradient]) -> None:
    """Raise unless there are parts, all of one length, dtype and device.

    Raises:
        ValueError: there is none, or one does not fit the first.
    """
    if not parts:
        raise ValueError("parts must hold at least one sparse gradient, got none. Pass one for each worker.")
    first = parts[0]
    dtype, device = first.values.dtype, first.values.device
    for rank, part in enumerate(parts):
        if part.numel != first.numel or part.values.dtype != dtype or part.values.device != device:
            raise ValueError(
                f"parts must be alike, got {part.numel} entries of {part.values.dtype} on {part.values.device} in part "
                f"{rank} and {first.numel} of {dtype} on {device} in part 0. Decode all with the same numel and dtype."
            )


def require_mean_of(parts: Sequence[SparseGradient], out: Tensor) -> None:
    """Raise ``ValueError`` unless ``out`` can take the mean of ``parts``."""
    require_parts(parts)
    require_vector(out, "out")
    first = parts[0]
    if out.numel() != first.numel or out.dtype != first.values.dtype or out.device != first.values.device:
        raise ValueError(
            f"out must fit its parts of {first.numel} entries of {first.values.dtype} on {first.values.device}, got "
            f"{out.numel()} of {out.dtype} on {out.device}. Pass another buffer."
        )
