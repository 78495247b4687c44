"""The normal law: what Gaussian_k assumes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .law import Floats, Law, require_share

_STANDARD = NormalDist()


@dataclass(frozen=True)
class Normal(Law):
    """Draw from ``exp(-u^2 / 2)``.

    ``t = Phi^-1(1 - rho/2)`` and ``gamma = 1 - rho - 2 t phi(t)`` in units of the standard deviation: integrate
    ``u^2 phi(u)`` by parts.

    Source: Shi et al. 2019, section 4. Differs: the paper's text writes the one-sided ``p = 1 - k/d``, which lets 2k
    entries through.

    Example:
        >>> round(Normal().threshold(0.001), 6), round(Normal().contraction(0.001), 6)
        (3.290527, 0.987304)
    """

    def threshold(self, density: float) -> float:
        """Return the two-sided percentile point."""
        return self.std * self._unit(density)

    def density(self, threshold: float) -> float:
        """Return ``erfc(t / sqrt 2)``."""
        return math.erfc(threshold / self.std / math.sqrt(2))

    def contraction(self, density: float) -> float:
        """Return ``1 - rho - 2 t phi(t)``."""
        t = self._unit(density)
        return max(0.0, 1 - density - 2 * t * _STANDARD.pdf(t))

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        return np.exp(-((points / self.std) ** 2) / 2) / (self.std * math.sqrt(2 * math.pi))

    @property
    def mean_abs(self) -> float:
        """``std sqrt(2 / pi)``."""
        return self.std * math.sqrt(2 / math.pi)

    @property
    def kurtosis(self) -> float:
        """3."""
        return 3.0

    def _unit(self, density: float) -> float:
        half = require_share(density) / 2
        return -_STANDARD.inv_cdf(half) if half < 0.5 else 0.0
