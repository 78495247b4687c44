"""The exchange of the paper and its time: whole model, after backward, eager, 32 bits an index and 32 a value."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank_lab.bench.peers import PEERS

# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_SAME_COUNT = ("torch.topk",)


class PaperExchange:
    """Select with error feedback on the gradients of a whole model, and average what all workers selected.

    Where counts differ, they are gathered first and rows are filled up to the longest; repeated indices are added up.
    The published code cuts unequal rows wrongly and drops repeated indices: that would cost the same time.

    Args:
        rule: key of ``PEERS``.
        density: share of entries to send.

    Attributes:
        select_s: seconds of joining, accumulation and selection in the last step.
        exchange_s: seconds of its messages.
        finish_s: seconds of adding up and handing out.
        sent_bytes: bytes that this worker sent in it.
        kept: entries that it chose.
    """

    def __init__(self, rule: str, density: float) -> None:
        self._choose, self._same_count = PEERS[rule].choose, rule in _SAME_COUNT
        self._density = density
        self._world_size = dist.get_world_size()
        self._random = torch.Generator().manual_seed(dist.get_rank())
        self._residual: Tensor | None = None
        self.select_s = self.exchange_s = self.finish_s = 0.0
        self.sent_bytes = self.kept = 0

    @torch.no_grad()
    def reduce(self, grads: Sequence[Tensor]) -> None:
        """Replace gradients, of any shapes, by the mean of all workers' selections."""
        began = time.perf_counter()
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        if self._residual is None:
            self._residual = torch.zeros_like(flat)
        accumulated = self._residual.add_(flat)
        k = max(1, round(self._density * flat.numel()))
        indices = self._choose(accumulated, k, self._random)
        values = accumulated[indices]
        accumulated[indices] = 0
        taken = time.perf_counter()
        self.sent_bytes = 0
        all_indices, all_values = self._gather(indices.int(), values)
        arrived = time.perf_counter()
        flat.zero_().index_add_(0, all_indices.long(), all_values).div_(self._world_size)
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        self.kept = indices.numel()
        self.select_s, self.exchange_s = taken - began, arrived - taken
        self.finish_s = time.perf_counter() - arrived

    def _gather(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices and values of all workers, end to end; padding adds zeros to the first entry."""
        if not self._same_count:
            longest = int(self._gathered(torch.tensor([indices.numel()])).max())
            indices, values = (
                torch.cat([part, part.new_zeros(longest - part.numel())]) for part in (indices, values)
            )  # fmt: skip
        return self._gathered(indices), self._gathered(values)

    def _gathered(self, row: Tensor) -> Tensor:
        rows = row.new_empty(self._world_size * row.numel())
        _all_gather(rows, row)
        self.sent_bytes += (self._world_size - 1) * row.numel() * row.element_size()
        return rows
