"""A limit on the count of any compressor: what is cut stays in the residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken

from .compressor import Compressor, SelectContext, Selection, put_back


@dataclass(frozen=True)
class Capped(Compressor):
    """Choose what ``inner`` chooses, but at most ``limit`` entries: of more, the largest.

    Whatever is cut was not sent, and therefore stays in the residual like all else that was not sent. A budget in
    bytes becomes a limit in ``collectives.entries_within``; ``compress(..., max_bytes=...)`` does both.

    Args:
        inner: the compressor to cap.
        limit: largest count; a smaller one sends less and delays more.

    Raises:
        ValueError: ``limit`` below 1.

    Example:
        >>> import torch
        >>> from gaussiank import TopK
        >>> Capped(TopK(), limit=1).select(torch.tensor([3.0, -1.0, 2.0]), k=2).indices
        tensor([0], dtype=torch.int32)
    """

    cuts: ClassVar[bool] = True

    inner: Compressor
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1 entry, got {self.limit}. Raise the budget.")

    @property
    def keeps_rest(self) -> bool:
        """Whether the inner compressor does."""
        return self.inner.keeps_rest

    def capacity(self, k: int, numel: int) -> int | None:
        """Return the inner capacity, or the limit when that is smaller."""
        inner = self.inner.capacity(k, numel)
        return min(self.limit, numel if inner is None else inner)

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose with the inner compressor, then cut."""
        indices, hint = self.inner.select(accumulated, k, turn)
        if indices.numel() > self.limit:
            indices = indices[ops.select_topk(accumulated[indices], self.limit)]
        return Selection(indices, hint)

    def take(
        self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None
    ) -> Taken | None:
        """Take with the inner compressor, and put back what is cut."""
        taken = self.inner.take(grad, residual, out, k, turn)
        if taken is None:
            return None
        indices, values, hint = taken
        bad = ~torch.isfinite(values)
        if bool(bad.any()):  # they alone, the first that fit
            return Taken(*put_back(out, indices, values, bad & (bad.cumsum(0) <= self.limit)))
        if indices.numel() <= self.limit:
            return taken
        keep = torch.zeros_like(bad)
        keep[ops.select_topk(values, self.limit)] = True
        return Taken(*put_back(out, indices, values, keep), hint)
