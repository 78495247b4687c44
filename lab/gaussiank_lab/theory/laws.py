"""The laws that gradients are compared with, on scipy's distributions: a class each, one line each in the table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, gammainc, gammaln, spence

Floats = NDArray[np.float64]


def require_share(density: float) -> float:
    """Return ``density``, or raise ``ValueError`` unless it lies in (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density!r}. Give the share of entries to keep, as 0.001.")
    return float(density)


@dataclass(frozen=True)
class Law(ABC):
    """Describe the entries u of a long vector as independent draws from one law, symmetric around zero.

    In the limit of a long vector Top_k keeps the entries with ``|u|`` above the ``threshold`` of its density k/d, and
    leaves the share ``contraction`` of the vector's energy.

    Args:
        std: standard deviation of u, above 0.

    Raises:
        ValueError: ``std`` or a parameter of the law out of its range.
    """

    std: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise ValueError(f"std must be above 0 and finite, got {self.std}. Leave it out for unit variance.")

    @cached_property
    def _law(self) -> Any:
        """The law as scipy's frozen distribution; ``scipy.stats`` takes a second to import, so it waits for its use."""
        from scipy import stats

        name, *shape = self._scipy()
        unit = getattr(stats, name)
        return unit(*shape, scale=self.std / float(unit.std(*shape)), loc=self.std * self._left)

    _left = 0.0
    """Where scipy's law starts if that is not its middle, in standard deviations."""

    @abstractmethod
    def _scipy(self) -> tuple[Any, ...]:
        """Return scipy's name of the law and its shape parameters."""

    @abstractmethod
    def _small_energy(self, density: float, threshold: float) -> float:
        """Return the energy share of the entries below a threshold, given in standard deviations."""

    @property
    @abstractmethod
    def _mean_abs_unit(self) -> float:
        """``E|u|`` at unit variance."""

    def threshold(self, density: float) -> float:
        """Return t with ``P(|u| > t) = density``, the two-sided percentile point, for a density in (0, 1].

        Raises:
            ValueError: ``density`` out of its range.
        """
        return float(self._law.isf(density / 2)) if require_share(density) < 1 else 0.0

    def density(self, threshold: float) -> float:
        """Return ``P(|u| > threshold)``, the share of entries that a threshold >= 0 keeps."""
        return 2 * float(self._law.sf(threshold))

    def contraction(self, density: float) -> float:
        """Return gamma, ``||u - Top_k(u)||^2 / ||u||^2`` at ``k = density * d``: the energy share of the small entries.

        Raises:
            ValueError: ``density`` out of its range.
        """
        return max(0.0, self._small_energy(require_share(density), self.threshold(density) / self.std))

    def pdf(self, points: Floats) -> Floats:
        """Return the probability density at every point."""
        values: Floats = self._law.pdf(points)
        return values

    @property
    def mean_abs(self) -> float:
        """``E|u|``."""
        return self.std * self._mean_abs_unit

    @property
    def kurtosis(self) -> float:
        """``E u^4 / (E u^2)^2``, 3 for the normal law; infinite where the fourth moment is."""
        return 3 + float(self._law.stats(moments="k"))

    def delta(self, density: float) -> float:
        """Return ``1 - contraction``, the energy share that Top_k sends.

        Source: Shi et al. 2019, definition of a delta-contraction (Karimireddy et al. 2019, assumption A).
        """
        return 1 - self.contraction(density)

    def cdf(self, points: Floats | Iterable[float]) -> Floats:
        """Return ``P(u <= x)`` for every point x."""
        at = np.asarray(points, dtype=np.float64)
        values: Floats = 0.5 + np.sign(at) * (0.5 - self._law.sf(np.abs(at)))  # symmetric to the last bit
        return values


@dataclass(frozen=True)
class Normal(Law):
    """Draw from ``exp(-u^2 / 2)``: what Gaussian_k assumes.

    ``t = Phi^-1(1 - rho/2)`` and ``gamma = P(3/2, t^2 / 2) = 1 - rho - 2 t phi(t)``, P the lower regularised incomplete
    gamma function.

    Source: Shi et al. 2019, section 4. Differs: the paper's text writes the one-sided ``p = 1 - k/d``, which lets 2k
    entries through.

    Example:
        >>> round(Normal().threshold(0.001), 6), round(Normal().contraction(0.001), 6)
        (3.290527, 0.987304)
    """

    _mean_abs_unit = math.sqrt(2 / math.pi)

    def _scipy(self) -> tuple[Any, ...]:
        return ("norm",)

    def _small_energy(self, density: float, threshold: float) -> float:
        return float(gammainc(1.5, threshold**2 / 2))


@dataclass(frozen=True)
class Laplace(Law):
    """Draw from ``exp(-|u| / b)``, where ``std = b sqrt 2``: two exponentials back to back.

    ``t = b ln(1 / rho)`` and ``gamma = P(3, t / b)``.

    Source: computed; the law SIDCo fits first (Abdelmoniem et al. 2021, section 2).

    Example:
        >>> round(Laplace().threshold(0.001), 6), round(Laplace().contraction(0.001), 6)
        (4.884521, 0.968234)
    """

    _mean_abs_unit = math.sqrt(0.5)

    def _scipy(self) -> tuple[Any, ...]:
        return ("laplace",)

    def _small_energy(self, density: float, threshold: float) -> float:
        return float(gammainc(3, threshold * math.sqrt(2)))


@dataclass(frozen=True)
class Logistic(Law):
    """Draw from ``e^x / (1 + e^x)^2`` with ``x = u / s``, ``std = pi s / sqrt 3``: exponential tails, normal middle.

    ``t = s ln(2 / rho - 1)``. The energy above t, by parts twice:
    ``2 s^2 (x^2 / (1 + e^x) + 2 x ln(1 + e^-x) - 2 Li2(-e^-x))`` with ``x = t / s``, of ``s^2 pi^2 / 3`` in all.

    Source: computed.

    Example:
        >>> round(Logistic().threshold(0.01), 6), round(Logistic().contraction(0.01), 6)
        (2.918352, 0.87647)
    """

    _mean_abs_unit = 2 * math.log(2) * math.sqrt(3) / math.pi

    def _scipy(self) -> tuple[Any, ...]:
        return ("logistic",)

    def _small_energy(self, density: float, threshold: float) -> float:
        x = threshold * math.pi / math.sqrt(3)
        tail = math.exp(-x)
        above = x**2 * density / 2 + 2 * x * math.log1p(tail) - 2 * spence(1 + tail)  # Li2(-y) is spence(1 + y)
        return float(1 - 6 / math.pi**2 * above)


@dataclass(frozen=True)
class StudentT(Law):
    """Draw from ``(1 + x^2 / df)^(-(df + 1) / 2)``, ``x = u / s``, ``std = s sqrt(df / (df - 2))``: tails of a power.

    With ``b = df / (df + x^2)``, a Beta(df/2, 1/2) variable: ``P(|u| > t) = I_b(df/2, 1/2)`` and
    ``gamma = 1 - I_b(df/2 - 1, 3/2)``, I the regularised incomplete beta function.

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
        ratio, excess = mean_abs / std, (1e-14, 1e6)  # df above 2, as its logarithm is what the root is found in
        if not cls(2 + excess[0])._mean_abs_unit < ratio < cls(2 + excess[1])._mean_abs_unit:
            return None
        found = brentq(lambda log: cls(2 + math.exp(log))._mean_abs_unit - ratio, *map(math.log, excess))
        return cls(2 + math.exp(found), std=std)

    def _scipy(self) -> tuple[Any, ...]:
        return ("t", self.df)

    def _small_energy(self, density: float, threshold: float) -> float:
        b = self.df / (self.df + threshold**2 * self.df / (self.df - 2))
        return float(1 - betainc(self.df / 2 - 1, 1.5, b))

    @property
    def _mean_abs_unit(self) -> float:
        """``2 sqrt((df - 2) / pi) Gamma((df + 1) / 2) / (Gamma(df / 2) (df - 1))``, from 0 to the normal's."""
        ratio = math.exp(gammaln((self.df + 1) / 2) - gammaln(self.df / 2))
        return 2 * math.sqrt((self.df - 2) / math.pi) * ratio / (self.df - 1)

    @property
    def kurtosis(self) -> float:
        """``3 + 6 / (df - 4)``, infinite up to df = 4."""
        return 3 + 6 / (self.df - 4) if self.df > 4 else math.inf


@dataclass(frozen=True)
class GeneralisedGaussian(Law):
    """Draw from ``exp(-|u / a|^shape)``: one family from sharper than Laplace, over the normal, to the uniform.

    ``|u / a|^shape`` is Gamma(1 / shape) distributed, ``std^2 = a^2 Gamma(3 / shape) / Gamma(1 / shape)``, and
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
        if not cls(0.1)._mean_abs_unit <= ratio <= cls(100.0)._mean_abs_unit:
            return None
        return cls(brentq(lambda shape: cls(shape)._mean_abs_unit - ratio, 0.1, 100.0, rtol=1e-14), std=std)

    def _scipy(self) -> tuple[Any, ...]:
        return ("gennorm", self.shape)

    def _small_energy(self, density: float, threshold: float) -> float:
        scale = math.exp((gammaln(1 / self.shape) - gammaln(3 / self.shape)) / 2)
        return float(gammainc(3 / self.shape, (threshold / scale) ** self.shape))

    @property
    def _mean_abs_unit(self) -> float:
        """``Gamma(2 / shape) / sqrt(Gamma(1 / shape) Gamma(3 / shape))``, rising with the shape."""
        return math.exp(gammaln(2 / self.shape) - (gammaln(1 / self.shape) + gammaln(3 / self.shape)) / 2)


@dataclass(frozen=True)
class Uniform(Law):
    """Draw from ``[-w, w]`` with equal chance, where ``std = w / sqrt 3``: the flattest of all bells.

    ``t = w (1 - rho)`` and ``gamma = (1 - rho)^3``.

    Source: computed; the case of equality of ``theory.bounds.CUBED``.

    Example:
        >>> round(Uniform().threshold(0.001), 6), round(Uniform().contraction(0.001), 6)
        (1.730319, 0.997003)
    """

    _left = -math.sqrt(3)
    _mean_abs_unit = math.sqrt(3) / 2

    def _scipy(self) -> tuple[Any, ...]:
        return ("uniform",)

    def _small_energy(self, density: float, threshold: float) -> float:
        return (1 - density) ** 3


@dataclass(frozen=True)
class Triangular(Law):
    """Draw from ``1 - |u| / w`` on ``[-w, w]``, where ``std = w / sqrt 6``: what error feedback makes of noise.

    ``P(|u| > t) = (1 - t / w)^2``, so with ``s = 1 - sqrt rho``: ``t = w s`` and ``gamma = 4 s^3 - 3 s^4``.

    Source: computed; see ``theory.residual``.

    Example:
        >>> round(Triangular().threshold(0.01), 6), round(Triangular().contraction(0.01), 6)
        (2.204541, 0.9477)
    """

    _left = -math.sqrt(6)
    _mean_abs_unit = math.sqrt(6) / 3

    def _scipy(self) -> tuple[Any, ...]:
        return ("triang", 0.5)

    def _small_energy(self, density: float, threshold: float) -> float:
        s = 1 - math.sqrt(density)
        return 4 * s**3 - 3 * s**4


LAWS: dict[str, type[Law]] = {
    "normal": Normal,
    "laplace": Laplace,
    "logistic": Logistic,
    "student_t": StudentT,
    "generalised_gaussian": GeneralisedGaussian,
    "uniform": Uniform,
    "triangular": Triangular,
}
"""Name -> class. Fits, reports and tests are driven by this table."""
