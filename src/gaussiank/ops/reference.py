"""Every op in plain PyTorch, on any device: the specification, and the fallback of every faster backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class Moments(NamedTuple):
    """Moments of a vector, each a 0-d tensor on its device.

    Attributes:
        mean: mean of u.
        std: standard deviation of u, unbiased (divisor ``numel - 1``).
        mean_abs: mean of |u|.
        max_abs: largest |u|.
    """

    mean: Tensor
    std: Tensor
    mean_abs: Tensor
    max_abs: Tensor


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


def accumulate(residual: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Write ``residual + grad`` to ``out``; 12 bytes an element move for float32.

    Args:
        residual: float ``[numel]``, what earlier steps did not send. Not modified.
        grad: float ``[numel]``, any supported dtype; converted in the same pass. Not modified.
        out: ``[numel]`` in the residual's dtype; may be ``residual`` itself.

    Returns:
        ``out``.

    Example:
        >>> accumulate(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), out=torch.empty(2))
        tensor([1.5000, 2.5000])
    """
    return torch.add(residual, grad, out=out)


def select_topk(accumulated: Tensor, k: int) -> Tensor:
    """Select exactly the ``k`` entries of largest magnitude; of equal ones the lowest index wins.

    The k-th magnitude comes from ``torch.topk``, whose choice among equals is undefined; entries equal to it are
    therefore chosen anew, from the front. Infinities and NaN count as larger than every finite entry. No host
    synchronisation on accelerators.

    Args:
        accumulated: float ``[numel]``. Not modified.
        k: entries to select, 1 to numel.

    Returns:
        int32 ``[k]`` ascending indices.

    Raises:
        ValueError: ``accumulated`` is no flat vector, or ``k`` is out of range.

    Example:
        >>> select_topk(torch.tensor([3.0, -1.0, 2.0, 0.5, -2.0]), k=2)
        tensor([0, 2], dtype=torch.int32)
    """
    require_vector(accumulated, "accumulated")
    require_k(k, accumulated.numel())
    magnitude = accumulated.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    values, indices = magnitude.topk(k)
    limit = values[-1]
    larger = values > limit  # sorted, so these are the first ones
    equal = _first_nonzero(magnitude == limit, k)
    place = torch.arange(k, device=accumulated.device) - larger.sum()
    chosen = torch.where(larger, indices, equal[place.clamp_(min=0)])
    return chosen.sort().values.int()


def _first_nonzero(mask: Tensor, limit: int) -> Tensor:
    if mask.device.type in ("cpu", "cuda"):
        return torch.nonzero_static(mask, size=limit).squeeze(1)  # a fixed size needs no synchronisation
    return mask.nonzero().squeeze(1)[:limit]


def select_above(accumulated: Tensor, threshold: float) -> Tensor:
    """Select the entries whose magnitude is strictly above ``threshold``.

    Args:
        accumulated: float ``[numel]``. Not modified.
        threshold: magnitude limit; a larger value selects fewer.

    Returns:
        int32 ``[kept]`` ascending indices.

    Example:
        >>> select_above(torch.tensor([3.0, -1.0, 2.0, -2.5]), 1.0)
        tensor([0, 2, 3], dtype=torch.int32)
    """
    return (accumulated.abs() > threshold).nonzero().squeeze(1).int()


def count_above(magnitude: Tensor, threshold: float) -> int:
    """Count the entries of ``magnitude`` above ``threshold``; waits for the device.

    Example:
        >>> count_above(torch.tensor([3.0, 1.0, 2.0]), 1.0)
        2
    """
    return int(torch.count_nonzero(magnitude > threshold))


def moments(accumulated: Tensor) -> Moments:
    """Compute mean, unbiased standard deviation, mean |u| and max |u| of a float ``[numel]`` vector.

    Example:
        >>> [round(float(m), 3) for m in moments(torch.tensor([1.0, -1.0, 3.0]))]
        [1.0, 2.0, 1.667, 3.0]
    """
    if accumulated.numel() == 1:
        magnitude = accumulated.abs()[0]
        return Moments(accumulated[0], torch.zeros_like(magnitude), magnitude, magnitude)
    std, mean = torch.std_mean(accumulated)
    low, high = torch.aminmax(accumulated)
    return Moments(mean, std, accumulated.abs().mean(), torch.maximum(-low, high))


def all_finite(vector: Tensor) -> Tensor:
    """Tell whether no entry is infinite or NaN, as a 0-d bool tensor, in one pass without a copy.

    Example:
        >>> bool(all_finite(torch.tensor([1.0, float("nan")])))
        False
    """
    if vector.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=vector.device)
    low, high = torch.aminmax(vector)  # both carry a NaN on
    return torch.isfinite(low) & torch.isfinite(high)


def nonfinite_indices(vector: Tensor, limit: int) -> Tensor:
    """Find the first ``limit`` infinite or NaN entries, as ascending int32 indices.

    Example:
        >>> nonfinite_indices(torch.tensor([1.0, float("inf"), float("nan")]), limit=1)
        tensor([1], dtype=torch.int32)
    """
    return (~torch.isfinite(vector)).nonzero().squeeze(1)[:limit].int()


def scatter_mean(parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Write the mean of P sparse vectors to a dense one, adding them in the given order.

    Repeated indices across parts add up; the fixed order makes the result the same to the bit on every worker.

    Args:
        parts: one sparse gradient for each worker, in rank order; any of them may be empty.
        out: float32 or float64 ``[numel]``; overwritten.

    Returns:
        ``out``.

    Example:
        >>> one = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 7.0]), 4)
        >>> two = SparseGradient(torch.arange(4, dtype=torch.int32), torch.tensor([-1.0, -2.0, -3.0, -4.0]), 4)
        >>> scatter_mean([one, two], torch.empty(4))
        tensor([ 2., -1.,  2., -2.])
    """
    out.zero_()
    for part in parts:
        out.index_add_(0, part.indices, part.values)
    return out.div_(len(parts))
