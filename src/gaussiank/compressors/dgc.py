"""DGC_k: a threshold from a sample, re-selected exactly when it lets too many through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken

from .compressor import Compressor, SelectContext, Selection, finish_take, put_back

_ROOM = 4  # times k; above it the sample misled, and exact Top_k of the whole sum is the quicker way
_LEAST_SAMPLED = 64
_LOWERINGS = 10


@dataclass(frozen=True)
class DGC(Compressor):
    """Choose the entries above the top-density threshold of a strided sample, and never more than k.

    The threshold is the smallest of the largest ``ceil(sampled * k / numel)`` sampled magnitudes. More than k entries
    reach it: exactly the k largest of them are re-selected. Fewer than 0.8 k: the threshold is lowered, x 0.8 a time,
    at most 10 times. In between, the few are sent as they are.

    Args:
        sample: share of the entries that is sampled; a larger one costs time and finds a better threshold. Where the
            sample would hold fewer than 64 entries, all are taken and the choice is exact.

    Raises:
        ValueError: ``sample`` outside (0, 1].

    Source: Lin et al. 2018, "Deep Gradient Compression", section 3 and algorithm 4, and its authors' code.
    Differs: the stride starts at an offset that depends on the step, not on a random number, so that runs repeat; a
    surplus below 1.3 k is re-selected as well, where the authors' code cuts it off by position. Momentum correction,
    masking, clipping and warm-up are options of their own (``MomentumCorrection``, ``Warmup``).

    Example:
        >>> import torch
        >>> u = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> 800 <= len(DGC().select(u, k=1000).indices) <= 1000
        True
    """

    sample: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise ValueError(f"sample must be in (0, 1], got {self.sample}. DGC samples 0.01.")

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose at most k entries above the sampled threshold."""
        ops.require_vector(accumulated, "accumulated")
        ops.require_k(k, accumulated.numel())
        magnitude = accumulated.abs()
        threshold = self._threshold(magnitude[self._sampled(accumulated.numel(), turn)], k, accumulated.numel())
        indices = (magnitude >= threshold).nonzero().squeeze(1)
        for _ in range(_LOWERINGS):
            if indices.numel() >= 0.8 * k:
                break
            threshold = threshold * 0.8
            indices = (magnitude >= threshold).nonzero().squeeze(1)
        if indices.numel() > k:
            indices = indices[ops.select_topk(accumulated[indices], k)]
        return Selection(indices.int())

    def take(
        self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None
    ) -> Taken | None:
        """Sample the sum, then add, choose and remove in one pass, unless the sample was misleading."""
        numel = grad.numel()
        ops.require_accumulation(grad, residual, out)
        ops.require_k(k, numel)
        places = self._sampled(numel, turn)
        threshold = self._threshold((residual[places] + grad[places]).abs(), k, numel)
        if not bool(torch.isfinite(threshold)):
            return None
        below = float(torch.nextafter(threshold, threshold.new_tensor(-math.inf)))  # the op takes what is above
        capacity = min(numel, _ROOM * k)
        indices, values, count, fit = ops.accumulate_threshold(grad, residual, below, capacity, out=out)
        if not 0.8 * k <= count <= capacity or not bool(fit.finite):
            out[indices] = values
            return finish_take(self, out, k, turn, finite=bool(fit.finite))
        if count > k:
            keep = torch.zeros_like(indices, dtype=torch.bool)
            keep[ops.select_topk(values, k)] = True
            indices, values = put_back(out, indices, values, keep)
        return Taken(indices, values)

    def _sampled(self, numel: int, context: SelectContext | None) -> slice:
        """Return the places that are sampled at this step."""
        stride = max(1, round(1 / self.sample)) if numel * self.sample >= _LEAST_SAMPLED else 1
        return slice((context.step if context else 0) % stride, None, stride)

    def _threshold(self, sampled: Tensor, k: int, numel: int) -> Tensor:
        wanted = min(sampled.numel(), math.ceil(sampled.numel() * k / numel))
        return sampled.topk(wanted, sorted=False).values.min()
