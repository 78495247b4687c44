"""The Laplace law: two exponentials back to back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class Laplace(Law):
    """Draw from ``exp(-|u| / b)``, where ``std = b sqrt 2``.

    With ``L = ln(1 / rho)``: ``t = b L`` and ``gamma = 1 - rho (1 + L + L^2 / 2)``, the incomplete gamma function of
    order 3.

    Source: computed; the law SIDCo fits first (Abdelmoniem et al. 2021, section 2).

    Example:
        >>> round(Laplace().threshold(0.001), 6), round(Laplace().contraction(0.001), 6)
        (4.884521, 0.968234)
    """

    @property
    def _scale(self) -> float:
        return self.std / math.sqrt(2)

    def threshold(self, density: float) -> float:
        """Return ``b ln(1 / rho)``."""
        return -self._scale * math.log(require_share(density))

    def density(self, threshold: float) -> float:
        """Return ``exp(-t / b)``."""
        return math.exp(-threshold / self._scale)

    def contraction(self, density: float) -> float:
        """Return ``1 - rho (1 + L + L^2 / 2)``."""
        log = -math.log(require_share(density))
        return max(0.0, 1 - density * (1 + log + log**2 / 2))

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        return np.exp(-np.abs(points) / self._scale) / (2 * self._scale)

    @property
    def mean_abs(self) -> float:
        """``b``."""
        return self._scale

    @property
    def kurtosis(self) -> float:
        """6."""
        return 6.0
