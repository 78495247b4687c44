"""The triangular law: what error feedback makes of noise (``theory.residual``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class Triangular(Law):
    """Draw from ``1 - |u| / w`` on ``[-w, w]``, where ``std = w / sqrt 6``.

    ``P(|u| > t) = (1 - t / w)^2``, so with ``s = 1 - sqrt rho``: ``t = w s`` and ``gamma = 4 s^3 - 3 s^4``.

    Source: computed.

    Example:
        >>> round(Triangular().threshold(0.01), 6), round(Triangular().contraction(0.01), 6)
        (2.204541, 0.9477)
    """

    @property
    def _half_width(self) -> float:
        return self.std * math.sqrt(6)

    def threshold(self, density: float) -> float:
        """Return ``w (1 - sqrt rho)``."""
        return self._half_width * (1 - math.sqrt(require_share(density)))

    def density(self, threshold: float) -> float:
        """Return ``(1 - t / w)^2``, and 0 beyond."""
        return max(0.0, 1 - threshold / self._half_width) ** 2

    def contraction(self, density: float) -> float:
        """Return ``4 s^3 - 3 s^4``."""
        s = 1 - math.sqrt(require_share(density))
        return 4 * s**3 - 3 * s**4

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        width = self._half_width
        return np.maximum(0.0, 1 - np.abs(points) / width) / width

    @property
    def mean_abs(self) -> float:
        """``w / 3``."""
        return self._half_width / 3

    @property
    def kurtosis(self) -> float:
        """2.4."""
        return 2.4
