"""Exact Top_k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken

from .compressor import Compressor, SelectContext, Selection


@dataclass(frozen=True)
class TopK(Compressor):
    """Choose exactly the k entries of largest magnitude; of equal ones the lowest index wins.

    ``||u - Top_k(u)||^2 <= (1 - k/d) ||u||^2``, and no choice of k entries leaves less.

    Source: Shi et al. 2019, "Understanding Top-k Sparsification in Distributed Deep Learning", equation 2.
    Differs: ties are broken by index, so that every backend and machine agrees.

    Example:
        >>> import torch
        >>> TopK().select(torch.tensor([3.0, -1.0, 2.0, 0.5]), k=2).indices
        tensor([0, 2], dtype=torch.int32)
    """

    nonfinite_first: ClassVar[bool] = True
    writes_rows: ClassVar[bool] = True

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose the k largest; the hint, last step's k-th magnitude, changes the time alone."""
        indices, _, hint = ops.topk(accumulated, k, turn.threshold(accumulated.device) if turn else None)
        return Selection(indices, hint)

    def take(self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None) -> Taken:
        """Add, choose the k largest and remove them, in one pass over memory."""
        hint = turn.threshold(grad.device) if turn else None
        return ops.accumulate_topk(grad, residual, k, hint, out=out, row=turn.row if turn else None)
