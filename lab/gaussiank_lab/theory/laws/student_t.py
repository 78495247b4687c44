"""Student's t: tails that fall as a power."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gaussiank_lab.theory.special import beta_i, falling_root

from .law import Floats, Law, require_share


@dataclass(frozen=True)
class StudentT(Law):
    """Draw from ``(1 + x^2 / df)^(-(df + 1) / 2)`` with ``x = u / s``, where ``std = s sqrt(df / (df - 2))``.

    With ``b = df / (df + x^2)``, a Beta(df/2, 1/2) variable: ``P(|u| > t) = I_b(df/2, 1/2)`` and
    ``gamma = 1 - I_b(df/2 - 1, 3/2)``.

    Args:
        df: degrees of freedom, above 2 so that the variance exists; a larger value is nearer to normal.
        std: standard deviation of u.

    Source: computed.

    Example:
        >>> round(StudentT(5).threshold(0.001), 5), round(StudentT(5).contraction(0.001), 6)
        (5.32057, 0.951119)
    """

    df: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.df > 2 and math.isfinite(self.df)):
            raise ValueError(f"df must be above 2 and finite, got {self.df}. Below, the energy has no mean.")

    @classmethod
    def matching(cls, mean_abs: float, std: float) -> StudentT | None:
        """Return the law with these two moments, or None where they ask for lighter tails than the normal's."""
        ratio = mean_abs / std
        if not 0 < ratio < _mean_abs_unit(1e6):
            return None
        return cls(falling_root(lambda inverse: _mean_abs_unit(2 + 1 / inverse), ratio) ** -1 + 2, std=std)

    @property
    def _scale(self) -> float:
        return self.std * math.sqrt((self.df - 2) / self.df)

    def threshold(self, density: float) -> float:
        """Return the two-sided percentile point, by bisection."""
        if require_share(density) == 1:
            return 0.0
        return falling_root(self.density, density, self.std)

    def density(self, threshold: float) -> float:
        """Return ``I_b(df/2, 1/2)``."""
        return beta_i(self.df / 2, 0.5, self._beta(threshold))

    def contraction(self, density: float) -> float:
        """Return ``1 - I_b(df/2 - 1, 3/2)``."""
        b = self._beta(self.threshold(density))
        return 1 - beta_i(self.df / 2 - 1, 1.5, b)

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density."""
        front = math.exp(math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2)) / math.sqrt(self.df * math.pi)
        x = points / self._scale
        values: Floats = front / self._scale * (1 + x**2 / self.df) ** (-(self.df + 1) / 2)
        return values

    @property
    def mean_abs(self) -> float:
        """``2 s sqrt(df / pi) Gamma((df + 1) / 2) / (Gamma(df / 2) (df - 1))``."""
        return self.std * _mean_abs_unit(self.df)

    @property
    def kurtosis(self) -> float:
        """``3 + 6 / (df - 4)``, infinite up to df = 4."""
        return 3 + 6 / (self.df - 4) if self.df > 4 else math.inf

    def _beta(self, threshold: float) -> float:
        return self.df / (self.df + (threshold / self._scale) ** 2)


def _mean_abs_unit(df: float) -> float:
    """Return ``E|u|`` at unit variance; rises from 0 at df = 2 to the normal's ``sqrt(2 / pi)``."""
    ratio = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2))
    return 2 * math.sqrt((df - 2) / math.pi) * ratio / (df - 1)
