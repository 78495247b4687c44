"""What error feedback makes of noise: the stationary law of the residual, its size and its age."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gaussiank_lab.theory.laws import Triangular, require_share

_OVERSHOOT = 0.5825971579390106
"""``-zeta(1/2) / sqrt(2 pi)``: how far, in steps' deviations, a normal random walk lands beyond a level on average."""


@dataclass(frozen=True)
class NoiseResidual:
    """Describe the residual under Top_k with error feedback when gradients are independent noise, in the long run.

    An entry of u walks at random from 0, is sent when ``|u|`` passes the common threshold T, and starts again at 0.
    The stationary density of such a walk falls linearly from 0 to both barriers: u is **triangular on [-T, T]**, with
    kurtosis 2.4, whatever the law of the noise. A walk of variance s^2 a step needs ``T^2 / s^2`` steps to leave
    [-T, T], and one in ``1 / density`` entries leaves at a step, so ``T = s / sqrt(density)``.

    Holds for small densities (a walk of many small steps). A step lands beyond the barrier by 0.583 s on average, which
    ``threshold`` takes off; the rest of the class uses the barrier widened by it, ``s / sqrt(density)``.

    Args:
        density: k/d, in (0, 1]; at most about 0.05 for the limit to mean much.
        noise_std: standard deviation s of the noise, above 0.

    Raises:
        ValueError: an argument out of its range.

    Source: computed; for the walk Karlin and Taylor 1981, "A Second Course in Stochastic Processes", section 15.3, for
    the overshoot Siegmund 1979, "Corrected diffusion approximations". Consequence: Gaussian_k's normal threshold lies
    beyond T for densities below about 0.014 and selects nothing at first.

    Example:
        >>> residual = NoiseResidual(density=0.001)
        >>> round(residual.law.kurtosis, 6), round(residual.barrier, 3), round(residual.mean_age, 1)
        (2.4, 31.623, 833.3)
    """

    density: float
    noise_std: float = 1.0

    def __post_init__(self) -> None:
        require_share(self.density)
        if not self.noise_std > 0:
            raise ValueError(f"noise_std must be above 0, got {self.noise_std}. Give the gradient's deviation.")

    @property
    def barrier(self) -> float:
        """Where the law ends: ``s / sqrt(density)``."""
        return self.noise_std / math.sqrt(self.density)

    @property
    def threshold(self) -> float:
        """Smallest magnitude that is sent: the barrier less the mean overshoot."""
        return max(0.0, self.barrier - _OVERSHOOT * self.noise_std)

    @property
    def law(self) -> Triangular:
        """The stationary law of an entry of the residual."""
        return Triangular(std=self.barrier / math.sqrt(6))

    @property
    def energy_over_noise(self) -> float:
        """``E||e||^2 / E||g||^2 = 1 / (6 density)``: how much larger the residual is than one gradient."""
        return 1 / (6 * self.density)

    @property
    def mean_delay(self) -> float:
        """Mean steps from one sending of an entry to the next: ``1 / density``."""
        return 1 / self.density

    @property
    def mean_age(self) -> float:
        """Mean steps since an entry was last sent, over entries at one moment: ``5 / (6 density)``.

        ``E tau^2 / (2 E tau)`` with the first two moments of the exit time, ``T^2 / s^2`` and ``5 T^4 / (3 s^4)``.
        """
        return 5 / (6 * self.density)


def residual_energy_bound(delta: float, second_moment: float) -> float:
    """Return what ``E||e||^2`` can be at most: ``4 (1 - delta) / delta^2 * sigma^2``, for any gradient.

    Args:
        delta: energy share that every selection sends at least, in (0, 1].
        second_moment: sigma^2 with ``E||g||^2 <= sigma^2``.

    Raises:
        ValueError: ``delta`` out of its range.

    Source: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", the bound on
    the error of EF-SGD, with the step size taken out.

    Example:
        >>> residual_energy_bound(0.5, 1.0)
        8.0
    """
    if not 0 < delta <= 1:
        raise ValueError(f"delta must be in (0, 1], got {delta}. It is the energy share that is sent.")
    return 4 * (1 - delta) / delta**2 * second_moment
