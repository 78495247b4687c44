"""The uniform law: the flattest of all bells, where the cubed bound is met exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class Uniform(Law):
    """Draw from ``[-w, w]`` with equal chance, where ``std = w / sqrt 3``.

    ``t = w (1 - rho)`` and ``gamma = (1 - rho)^3``.

    Source: computed; the case of equality of ``theory.bounds.CUBED``.

    Example:
        >>> round(Uniform().threshold(0.001), 6), round(Uniform().contraction(0.001), 6)
        (1.730319, 0.997003)
    """

    @property
    def _half_width(self) -> float:
        return self.std * math.sqrt(3)

    def threshold(self, density: float) -> float:
        """Return ``w (1 - rho)``."""
        return self._half_width * (1 - require_share(density))

    def density(self, threshold: float) -> float:
        """Return ``1 - t / w``, and 0 beyond."""
        return max(0.0, 1 - threshold / self._half_width)

    def contraction(self, density: float) -> float:
        """Return ``(1 - rho)^3``."""
        return (1 - require_share(density)) ** 3

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        return np.where(np.abs(points) <= self._half_width, 1 / (2 * self._half_width), 0.0)

    @property
    def mean_abs(self) -> float:
        """``w / 2``."""
        return self._half_width / 2

    @property
    def kurtosis(self) -> float:
        """1.8."""
        return 1.8
