"""Gaussian_k: a threshold from the normal law, corrected by counting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken

from .compressor import Compressor, SelectContext, Selection, finish_take, put_back

Mode = Literal["bracketed", "published", "paper"]
Trace = list[tuple[float, int]]

_NORMAL = NormalDist()
_MAX_TESTS = 20  # a longer search sits on ties; most seen on nine laws from uniform to Cauchy: 14 cold, 12 with a hint
_MARGIN = 0.85  # the fused pass collects down to this share of last step's threshold, so that the search has room
_ROOM = 12  # times k; more entries than that above the margin: the threshold has moved too far, and all is searched
_EXACT_BELOW = 32  # below this k the band of 2k/3..4k/3 holds a handful of counts, and exact selection is cheap


@dataclass(frozen=True)
class GaussianK(Compressor):
    """Choose the entries above the magnitude that a normal law with the vector's moments would exceed k times.

    The first threshold is ``mean + z std`` with z a percentile of the normal law. Fewer than 2k/3 entries above it:
    it was too high; more than 4k/3: too low. What happens then is the mode:

    - ``bracketed`` (default): search between a threshold known to be too low and one known to be too high until the
      count is in the band; starts from last step's threshold. The count is always within 2k/3..4k/3 (ties, and k below
      32, are settled by exact selection), so the payload is bounded.
    - ``published``: the published code. Two-sided percentile ``z = Phi^-1(1 - k/2d)``; too few, threshold x 0.5; too
      many, x 1.5; at most 3 tests; the mask of the last tested threshold is sent, whatever its count.
    - ``paper``: the paper's text. One-sided percentile ``p = 1 - k/d`` and 4 tests of the same steps.

    Args:
        mode: one of the three above. The last two are baselines: under error feedback the accumulated gradient is not
            normal, and their counts leave the band (``docs/compressors.md``).

    Raises:
        ValueError: an unknown mode.

    Source: Shi et al. 2019, "Understanding Top-k Sparsification in Distributed Deep Learning", section 4 (algorithm 1),
    and the code published with it.
    Differs: ``bracketed`` is ours.

    Example:
        >>> import torch
        >>> u = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> 667 <= len(GaussianK().select(u, k=1000).indices) <= 1333
        True
    """

    mode: Mode = "bracketed"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}. Choose one of them.")

    def capacity(self, k: int, numel: int) -> int | None:
        """Return the top of the band, 4k/3, for ``bracketed``; the other modes have no bound."""
        return min(numel, max(k, 4 * k // 3)) if self.mode == "bracketed" else None

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose the entries above the fitted threshold."""
        ops.require_vector(accumulated, "accumulated")
        ops.require_k(k, accumulated.numel())
        if self.mode == "bracketed":
            return _bracketed(accumulated, k, turn.threshold(accumulated.device) if turn else None)
        threshold = self.trace(accumulated, k)[-1][0]
        return Selection(ops.select_above(accumulated, threshold))

    def take(
        self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None
    ) -> Taken | None:
        """Collect what is above 0.85 of last step's threshold in one pass, and search among that few.

        ``bracketed`` with a hint alone: without one, and in the other modes, the fit needs the whole sum first.
        """
        numel = grad.numel()
        ops.require_k(k, numel)
        hint = turn.threshold(grad.device) if turn else None
        if self.mode != "bracketed" or hint is None or k < _EXACT_BELOW or not 0 < float(hint) < math.inf:
            return None
        start, capacity = float(hint), min(numel, _ROOM * k)
        indices, values, count, fit = ops.accumulate_threshold(grad, residual, _MARGIN * start, capacity, out=out)
        finite, threshold = bool(fit.finite), None
        if finite and count <= capacity:
            threshold = _search(values.abs(), k, start, numel=numel, floor=_MARGIN * start)
        if threshold is None:  # outside of what was collected, or nowhere
            out[indices] = values
            return finish_take(self, out, k, turn, finite=finite)
        indices, values = put_back(out, indices, values, values.abs() > threshold)
        return Taken(indices, values, _hint(threshold))

    def trace(self, accumulated: Tensor, k: int) -> Trace:
        """Return each ``(threshold, count)`` that ``published`` or ``paper`` tests; the last one is what it sends.

        Raises:
            ValueError: the mode is ``bracketed``, whose tests depend on the hint.
        """
        if self.mode == "bracketed":
            raise ValueError("mode must be published or paper for a trace, got 'bracketed'. Construct GaussianK so.")
        two_sided = self.mode == "published"
        mean, spread = _normal_fit(accumulated, k, two_sided)
        threshold = mean + spread
        magnitude = accumulated.abs()
        tests: Trace = []
        while True:
            count = ops.count_above(magnitude, threshold)
            tests.append((threshold, count))
            if len(tests) == (3 if two_sided else 4) or _in_band(count, k):
                return tests
            threshold *= 0.5 if 3 * count < 2 * k else 1.5


def _in_band(count: int, k: int) -> bool:
    return 2 * k <= 3 * count <= 4 * k


def _normal_fit(accumulated: Tensor, k: int, two_sided: bool) -> tuple[float, float]:
    """Return the mean, and the distance ``z std`` beyond which a normal law has k of numel entries."""
    tail = k / accumulated.numel() / (2 if two_sided else 1)
    z = -_NORMAL.inv_cdf(tail) if tail < 1 else 0.0
    fit = ops.moments(accumulated)
    return float(fit.mean), z * float(fit.std)


def _bracketed(accumulated: Tensor, k: int, hint: Tensor | None) -> Selection:
    if k < _EXACT_BELOW:
        return Selection(ops.select_topk(accumulated, k))
    magnitude = accumulated.abs()
    start = float(hint) if hint is not None else 0.0
    if start <= 0:
        mean, spread = _normal_fit(accumulated, k, two_sided=True)
        start = abs(mean) + spread
    threshold = _search(magnitude, k, start, numel=magnitude.numel())
    if threshold is None:
        return Selection(ops.select_topk(accumulated, k))
    return Selection((magnitude > threshold).nonzero().squeeze(1).int(), _hint(threshold))


def _hint(threshold: float) -> Tensor:
    return torch.tensor(threshold, dtype=torch.float64, device="cpu")


def _search(magnitude: Tensor, k: int, threshold: float, *, numel: int, floor: float = 0.0) -> float | None:
    """Search a threshold with a count in the band; None when there is none to be found (ties, too few non-zeros).

    ``low`` is known to let too many through, ``high`` too few. The next guess takes the logarithm of the count as
    linear between them, which an exponential tail makes exact; without a ``high`` it refits a normal tail to the last
    count. Three moves of the same end in a row mean that the guess is one-sided: then the interval is halved. Where
    ``magnitude`` holds only the entries above a ``floor``, of ``numel``, a guess below it ends the search.
    """
    low, low_count = 0.0, float(numel)
    high, high_count = math.inf, 0.5
    same_end = 0
    for _ in range(_MAX_TESTS):
        if not low < threshold < high or threshold < floor:
            break
        count = ops.count_above(magnitude, threshold)
        if _in_band(count, k):
            return threshold
        if 3 * count < 2 * k:
            high, high_count = threshold, max(count, 0.5)
            same_end = max(same_end, 0) + 1
        else:
            low, low_count = threshold, float(count)
            same_end = min(same_end, 0) - 1
        if high == math.inf:
            threshold = low * _tail_z(k, numel) / max(_tail_z(low_count, numel), 0.1)
        elif abs(same_end) >= 3:
            threshold = (low + high) / 2
        else:
            share = math.log(low_count / k) / math.log(low_count / high_count)
            threshold = low + (high - low) * min(max(share, 0.02), 0.98)
    return None


def _tail_z(count: float, numel: int) -> float:
    """Return z with ``count`` of ``numel`` standard normal magnitudes above it."""
    return -_NORMAL.inv_cdf(min(count / numel / 2, 0.5))
