"""The generalised Gaussian law: one family from sharper than Laplace, over the normal, to the uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gaussiank_lab.theory.special import falling_root, gamma_p, gamma_q

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class GeneralisedGaussian(Law):
    """Draw from ``exp(-|u / a|^shape)``, where ``std^2 = a^2 Gamma(3 / shape) / Gamma(1 / shape)``.

    ``|u / a|^shape`` is Gamma(1 / shape) distributed: ``P(|u| > t) = Q(1 / shape, (t / a)^shape)`` and
    ``gamma = P(3 / shape, (t / a)^shape)``.

    Args:
        shape: 1 is Laplace, 2 normal, large ones approach uniform; at least 0.1.
        std: standard deviation of u.

    Source: computed; shape from the first two absolute moments after Mallat 1989 (``matching``).

    Example:
        >>> round(GeneralisedGaussian(2).threshold(0.001), 6), round(GeneralisedGaussian(1).contraction(0.001), 6)
        (3.290527, 0.968234)
    """

    shape: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.1 <= self.shape <= 100:
            raise ValueError(f"shape must be in [0.1, 100], got {self.shape}. 1 is Laplace, 2 is normal.")

    @classmethod
    def matching(cls, mean_abs: float, std: float) -> GeneralisedGaussian | None:
        """Return the law with these two moments, or None where no shape from 0.1 to 100 has them."""
        ratio = mean_abs / std
        if not _mean_abs_unit(0.1) <= ratio <= _mean_abs_unit(100):
            return None
        shape = falling_root(lambda shape: -_mean_abs_unit(min(max(shape, 0.1), 100)), -ratio)
        return cls(min(max(shape, 0.1), 100), std=std)

    @property
    def _scale(self) -> float:
        return self.std * math.exp((math.lgamma(1 / self.shape) - math.lgamma(3 / self.shape)) / 2)

    def threshold(self, density: float) -> float:
        """Return the two-sided percentile point, by bisection."""
        if require_share(density) == 1:
            return 0.0
        return falling_root(self.density, density, self.std)

    def density(self, threshold: float) -> float:
        """Return ``Q(1 / shape, (t / a)^shape)``."""
        return gamma_q(1 / self.shape, self._power(threshold))

    def contraction(self, density: float) -> float:
        """Return ``P(3 / shape, (t / a)^shape)``."""
        return gamma_p(3 / self.shape, self._power(self.threshold(density)))

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        front = self.shape / (2 * self._scale * math.exp(math.lgamma(1 / self.shape)))
        values: Floats = front * np.exp(-(np.abs(points / self._scale) ** self.shape))
        return values

    @property
    def mean_abs(self) -> float:
        """``a Gamma(2 / shape) / Gamma(1 / shape)``."""
        return self.std * _mean_abs_unit(self.shape)

    @property
    def kurtosis(self) -> float:
        """``Gamma(5 / shape) Gamma(1 / shape) / Gamma(3 / shape)^2``."""
        lgamma, inverse = math.lgamma, 1 / self.shape
        return math.exp(lgamma(5 * inverse) + lgamma(inverse) - 2 * lgamma(3 * inverse))

    def _power(self, threshold: float) -> float:
        if threshold <= 0:
            return 0.0
        return math.exp(min(700.0, self.shape * math.log(threshold / self._scale)))


def _mean_abs_unit(shape: float) -> float:
    """Return ``E|u|`` at unit variance; rises with the shape."""
    lgamma, inverse = math.lgamma, 1 / shape
    return math.exp(lgamma(2 * inverse) - (lgamma(inverse) + lgamma(3 * inverse)) / 2)
