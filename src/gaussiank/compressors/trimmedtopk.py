"""Trimmed_topk: RedSync's selection, a falling threshold and then exact Top_k among what is above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken

from .compressor import Compressor, SelectContext, Selection


@dataclass(frozen=True)
class TrimmedTopK(Compressor):
    """Choose exactly k: lower a threshold between mean and maximum until k entries are above it, then take the largest.

    The threshold is ``mean|u| + r (max|u| - mean|u|)`` with r = 1 - step, 1 - 2 step, ...; the exact Top_k then runs
    on the trimmed few. The result is Top_k itself; only the work differs, and depends on the law of u.

    Args:
        step: how far r falls a time; a larger one needs fewer passes and trims less.

    Raises:
        ValueError: ``step`` outside (0, 1).

    Source: Fang et al. 2019, "RedSync: Reducing synchronization bandwidth for distributed deep learning training
    system", algorithm 2 (trimmed top-k selection), step 0.2.
    Differs: when r has reached 0 and fewer than k entries are above the mean, the exact Top_k of the whole vector is
    taken at once; the source would go on below the mean, and for ever on a constant vector.

    Example:
        >>> import torch
        >>> TrimmedTopK().select(torch.tensor([3.0, -1.0, 2.0, 0.5]), k=2).indices
        tensor([0, 2], dtype=torch.int32)
    """

    nonfinite_first: ClassVar[bool] = True  # no threshold is above an infinity or NaN: exact Top_k then chooses

    step: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.step < 1:
            raise ValueError(f"step must be in (0, 1), got {self.step}. RedSync uses 0.2.")

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose the k largest by trimming first."""
        ops.require_vector(accumulated, "accumulated")
        ops.require_k(k, accumulated.numel())
        fit = ops.moments(accumulated)
        mean, spread = float(fit.mean_abs), float(fit.max_abs - fit.mean_abs)
        magnitude = accumulated.abs()
        for turn_down in range(1, int(1 / self.step) + 1):
            threshold = mean + (1 - turn_down * self.step) * spread
            if ops.count_above(magnitude, threshold) >= k:
                trimmed = (magnitude > threshold).nonzero().squeeze(1)
                return Selection(trimmed[ops.select_topk(accumulated[trimmed], k)].int())
        return Selection(ops.select_topk(accumulated, k))

    def take(self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None) -> Taken:
        """Add, choose the k largest and remove them, in one pass: the result is Top_k's, and no trimming is faster."""
        indices, values, _ = ops.accumulate_topk(grad, residual, k, out=out)
        return Taken(indices, values)
