"""MSTopK: two thresholds by bisection, one above and one below k, then exactly k entries from between."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, SelectContext, Selection

_STRIDE = 0x9E3779B1  # a prime: the run of entries that fills up starts somewhere else at every step


@dataclass(frozen=True)
class MSTopK(Compressor):
    """Choose exactly k: all entries above a threshold that at most k reach, filled up with entries just below it.

    The threshold ``mean|u| + r (max|u| - mean|u|)`` is bisected in r. The smallest one that at most k entries reach is
    the upper bound, the largest one that more reach the lower. What the upper lacks to k comes from a run of
    consecutive entries between the two, whatever their order of magnitude. With enough samplings nothing is lacking,
    and the choice is the exact Top_k.

    Args:
        samplings: thresholds tried; more of them leave fewer entries to chance.

    Raises:
        ValueError: ``samplings`` below 1.

    Source: Shi et al. 2021, "Towards Scalable Distributed Training of Deep Learning on Public Cloud Clusters",
    algorithm 1 (MSTopK).
    Differs: the run starts at a place that depends on the step, not on a random number, so that runs repeat. A count of
    exactly k ends the search, and each lower bound shrinks what the next count looks at; both leave the choice as it
    is. Without any upper bound (all magnitudes equal, say) all k come from the run; the source does not say.

    Example:
        >>> import torch
        >>> MSTopK().select(torch.tensor([3.0, -1.0, 2.0, 0.5]), k=2).indices
        tensor([0, 2], dtype=torch.int32)
    """

    samplings: int = 30

    def __post_init__(self) -> None:
        if self.samplings < 1:
            raise ValueError(f"samplings must be at least 1, got {self.samplings}. The paper's authors take 30.")

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose k entries, the largest first, as far as the samplings tell."""
        ops.require_vector(accumulated, "accumulated")
        ops.require_k(k, accumulated.numel())
        magnitude = accumulated.abs()
        lower, upper = self._bounds(magnitude, k)
        candidates = (magnitude >= lower).nonzero().squeeze(1)
        if candidates.numel() > k:
            sure = magnitude[candidates] >= upper
            between = (~sure).nonzero().squeeze(1)
            lacking = k - (candidates.numel() - between.numel())
            start = (turn.step if turn else 0) * _STRIDE % (between.numel() - lacking + 1)
            sure[between[start : start + lacking]] = True
            candidates = candidates[sure]
        return Selection(candidates.int())

    def _bounds(self, magnitude: Tensor, k: int) -> tuple[float, float]:
        """Return a threshold that at least k entries reach, and one that at most k reach."""
        mean, largest = _mean(magnitude), float(magnitude.max())
        low, high, lower, upper = 0.0, 1.0, 0.0, math.inf
        for _ in range(self.samplings):
            ratio = (low + high) / 2
            threshold = mean + ratio * (largest - mean)
            reached = magnitude >= threshold
            count = int(reached.count_nonzero())
            if count == k:
                return threshold, threshold
            if count < k:
                high, upper = ratio, threshold
            else:
                low, lower = ratio, threshold
                magnitude = magnitude[reached]
        return lower, upper


def _mean(magnitude: Tensor) -> float:
    mean = float(magnitude.mean())
    if math.isfinite(mean):
        return mean
    largest = magnitude.max()  # the sum overflowed
    return float(largest) * float((magnitude / largest).mean())
