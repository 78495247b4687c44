"""The logistic law: a normal middle with exponential tails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gaussiank_lab.theory.special import dilog_negative

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class Logistic(Law):
    """Draw from ``e^x / (1 + e^x)^2`` with ``x = u / s``, where ``std = pi s / sqrt 3``.

    ``t = s ln(2 / rho - 1)``. The energy above t, by parts twice:
    ``2 s^2 (x^2 / (1 + e^x) + 2 x ln(1 + e^-x) - 2 Li2(-e^-x))`` with ``x = t / s``, of ``s^2 pi^2 / 3`` in all.

    Source: computed.

    Example:
        >>> round(Logistic().threshold(0.01), 6), round(Logistic().contraction(0.01), 6)
        (2.918352, 0.87647)
    """

    @property
    def _scale(self) -> float:
        return self.std * math.sqrt(3) / math.pi

    def threshold(self, density: float) -> float:
        """Return ``s ln(2 / rho - 1)``."""
        return self._scale * math.log(2 / require_share(density) - 1)

    def density(self, threshold: float) -> float:
        """Return ``2 / (1 + exp(t / s))``."""
        tail = math.exp(-threshold / self._scale)
        return 2 * tail / (1 + tail)

    def contraction(self, density: float) -> float:
        """Return one minus the energy above the threshold."""
        x = math.log(2 / require_share(density) - 1)
        tail = math.exp(-x)
        above = x**2 * density / 2 + 2 * x * math.log1p(tail) - 2 * dilog_negative(tail)
        return max(0.0, 1 - 6 / math.pi**2 * above)

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        tail = np.exp(-np.abs(points) / self._scale)
        values: Floats = tail / (1 + tail) ** 2 / self._scale
        return values

    @property
    def mean_abs(self) -> float:
        """``2 s ln 2``."""
        return 2 * self._scale * math.log(2)

    @property
    def kurtosis(self) -> float:
        """4.2."""
        return 4.2
