"""How fast SGD with a compressed, error-corrected gradient converges at least."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Bound the gradient of SGD with error feedback, step size ``1 / sqrt(T + 1)``, after T steps.

    ``min_t E||grad f(x_t)||^2 <= (4 (f0 - f*) + L sigma^2) / (2 sqrt(T + 1))
    + 4 L^2 sigma^2 (1 - delta) / (delta^2 (T + 1))``.

    The first term is plain SGD's. The second is the price of compression: it falls faster, and after
    ``transient_steps`` it is the smaller one.

    Args:
        delta: energy share that every selection sends at least, in (0, 1] (``Bound.delta``, ``Law.delta``).
        gap: ``f(x0) - f*``, not negative.
        smoothness: Lipschitz constant L of the gradient, above 0.
        second_moment: sigma^2 with ``E||g||^2 <= sigma^2``, above 0.

    Raises:
        ValueError: an argument out of its range.

    Source: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", the rate of
    EF-SGD on smooth functions, with its step size put in; Shi et al. 2019 puts its delta into the same form.

    Example:
        >>> rate = Rate(delta=0.001999, gap=2.0, smoothness=1.0, second_moment=1.0)
        >>> rate.after(10**9) < rate.after(10**6)
        True
        >>> round(rate.transient_steps() / Rate(0.001, 2.0, 1.0, 1.0).transient_steps(), 4)  # almost 16 times sooner
        0.0625
    """

    delta: float
    gap: float
    smoothness: float
    second_moment: float

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta must be in (0, 1], got {self.delta}. It is the energy share that is sent.")
        if not self.gap >= 0:
            raise ValueError(f"gap must not be negative, got {self.gap}. It is f(x0) minus the minimum.")
        for name in ("smoothness", "second_moment"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be above 0, got {getattr(self, name)}. Give the constant of the problem."
                )

    @property
    def sgd(self) -> float:
        """Factor of ``1 / sqrt(T + 1)``: the part that plain SGD has."""
        return (4 * self.gap + self.smoothness * self.second_moment) / 2

    @property
    def price(self) -> float:
        """Factor of ``1 / (T + 1)``: the price of compression, 0 at delta = 1."""
        return 4 * self.smoothness**2 * self.second_moment * (1 - self.delta) / self.delta**2

    def after(self, steps: int) -> float:
        """Return the bound after ``steps`` steps.

        Raises:
            ValueError: ``steps`` below 0.
        """
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}. Count from 0.")
        return self.sgd / math.sqrt(steps + 1) + self.price / (steps + 1)

    def steps_to(self, target: float) -> int:
        """Return the iteration complexity: the fewest steps after which the bound is at most ``target``.

        With ``y = 1 / sqrt(T + 1)`` it is the positive root of ``price y^2 + sgd y = target``; of order
        ``1 / target^2`` from SGD and ``1 / (delta^2 target)`` from compression.

        Raises:
            ValueError: ``target`` not above 0.
        """
        if not target > 0:
            raise ValueError(f"target must be above 0, got {target}. Give the squared gradient norm to reach.")
        y = 2 * target / (self.sgd + math.sqrt(self.sgd**2 + 4 * self.price * target))
        steps = max(0, math.ceil(1 / y**2 - 1))
        while steps > 0 and self.after(steps - 1) <= target:  # the root is rounded
            steps -= 1
        while self.after(steps) > target:
            steps += 1
        return steps

    def transient_steps(self) -> float:
        """Return the T from which compression's term is the smaller one: ``(price / sgd)^2``, of order 1 / delta^4."""
        return (self.price / self.sgd) ** 2
