"""How times differ from worker to worker and from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import require_at_least

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Describe jitter and stragglers as distributions; all factors have the mean 1 but those of stragglers.

    Args:
        compute_cv: deviation over mean of a worker's compute time, lognormal, drawn anew at every step.
        network_cv: the same of each message's time.
        straggler_share: share of the workers that are slow throughout.
        straggler_factor: how many times their compute takes, at least 1.

    Raises:
        ValueError: a number out of its range.
    """

    compute_cv: float = 0.0
    network_cv: float = 0.0
    straggler_share: float = 0.0
    straggler_factor: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("compute_cv", self.compute_cv, 0, "0.03 is a quiet cluster.")
        require_at_least("network_cv", self.network_cv, 0, "0 is a quiet network.")
        require_at_least("straggler_factor", self.straggler_factor, 1, "1 is no straggler.")
        if not 0 <= self.straggler_share <= 1:
            raise ValueError(f"straggler_share must be in [0, 1], got {self.straggler_share:g}. It is a share.")

    @property
    def varies(self) -> bool:
        """Whether workers differ at all."""
        return self.compute_cv > 0 or (self.straggler_share > 0 and self.straggler_factor > 1)

    def compute_factors(self, rng: np.random.Generator, workers: int, steps: int) -> Floats:
        """Draw ``[steps, workers]`` factors; one column stands for all workers when they do not differ."""
        if not self.varies:
            return np.ones((steps, 1))
        slow = rng.random(workers) < self.straggler_share
        return _lognormal(rng, self.compute_cv, (steps, workers)) * np.where(slow, self.straggler_factor, 1.0)

    def network_factors(self, rng: np.random.Generator, steps: int, exchanges: int) -> Floats:
        """Draw ``[steps, exchanges]`` factors."""
        return _lognormal(rng, self.network_cv, (steps, exchanges))


def _lognormal(rng: np.random.Generator, cv: float, shape: tuple[int, int]) -> Floats:
    sigma = math.sqrt(math.log1p(cv * cv))
    return np.exp(sigma * rng.standard_normal(shape) - sigma * sigma / 2) if cv else np.ones(shape)
