"""What every law is: a symmetric density around zero, of a given standard deviation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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

    @abstractmethod
    def threshold(self, density: float) -> float:
        """Return t with ``P(|u| > t) = density``, for a density in (0, 1].

        Raises:
            ValueError: ``density`` out of its range.
        """

    @abstractmethod
    def density(self, threshold: float) -> float:
        """Return ``P(|u| > threshold)``, the share of entries that a threshold >= 0 keeps."""

    @abstractmethod
    def contraction(self, density: float) -> float:
        """Return gamma, ``||u - Top_k(u)||^2 / ||u||^2`` at ``k = density * d``: the energy share of the small entries.

        Raises:
            ValueError: ``density`` out of its range.
        """

    @abstractmethod
    def pdf(self, points: Floats) -> Floats:
        """Return the probability density at every point."""

    @property
    @abstractmethod
    def mean_abs(self) -> float:
        """``E|u|``."""

    @property
    @abstractmethod
    def kurtosis(self) -> float:
        """``E u^4 / (E u^2)^2``, 3 for the normal law; infinite where the fourth moment is."""

    def delta(self, density: float) -> float:
        """Return ``1 - contraction``, the energy share that Top_k sends.

        Source: Shi et al. 2019, definition of a delta-contraction (Karimireddy et al. 2019, assumption A).
        """
        return 1 - self.contraction(density)

    def cdf(self, points: Floats | Iterable[float]) -> Floats:
        """Return ``P(u <= x)`` for every point x."""
        flat = np.asarray(points, dtype=np.float64)
        half = [math.copysign(1 - self.density(abs(float(x))), x) / 2 for x in flat.ravel()]
        return (0.5 + np.array(half, dtype=np.float64)).reshape(flat.shape)
