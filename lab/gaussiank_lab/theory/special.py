"""Three special functions and a root finder: what the laws need beyond the standard library.

They are written out here because scipy would be a dependency of 35 MB for them alone. Each is good to about 1e-13
relative on the laws' own arguments; the tests hold them to mpmath.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_TINY = 1e-300
_TERMS = 2000


def gamma_q(a: float, x: float) -> float:
    """Return the upper regularised incomplete gamma function ``Q(a, x)``, for a > 0 and x >= 0.

    Source: Abramowitz and Stegun 6.5.29 (series, below a + 1) and 6.5.31 (continued fraction, above).

    Example:
        >>> round(gamma_q(1.0, 2.0), 12) == round(math.exp(-2), 12)
        True
    """
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        return 1.0 - front * _gamma_series(a, x)
    return front * _fraction(lambda n: -n * (n - a) if n else 1.0, lambda n: x + 1 - a + 2 * n)


def gamma_p(a: float, x: float) -> float:
    """Return the lower regularised incomplete gamma function ``P(a, x) = 1 - Q(a, x)``, exact also where it is small.

    Example:
        >>> round(gamma_p(1.0, 1e-9), 15)
        1e-09
    """
    if 0 < x < a + 1:
        return math.exp(a * math.log(x) - x - math.lgamma(a)) * _gamma_series(a, x)
    return 1.0 - gamma_q(a, x)


def _gamma_series(a: float, x: float) -> float:
    term = total = 1 / a
    for n in range(1, _TERMS):
        term *= x / (a + n)
        total += term
        if term < 1e-17 * total:
            break
    return total


def beta_i(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function ``I_x(a, b)``, for a, b > 0 and x in [0, 1].

    Source: Abramowitz and Stegun 26.5.8 (continued fraction), with the symmetry ``I_x(a, b) = 1 - I_(1-x)(b, a)`` where
    it converges faster.

    Example:
        >>> round(beta_i(1.0, 2.0, 0.25), 12)  # 1 - (1 - x)^2
        0.4375
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_i(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)

    def numerator(n: int) -> float:
        if n == 0:
            return 1.0
        m = n // 2
        if n % 2 == 0:
            return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))

    return math.exp(front) / a * _fraction(numerator, lambda _: 1.0)


def _fraction(numerator: Callable[[int], float], denominator: Callable[[int], float]) -> float:
    """Return ``a0 / (b0 + a1 / (b1 + ...))`` by the modified method of Lentz."""
    value, c, d = _TINY, _TINY, 0.0
    for n in range(_TERMS):
        a, b = numerator(n), denominator(n)
        d = b + a * d
        c = b + a / c
        d = 1 / (d or _TINY)
        c = c or _TINY
        value *= c * d
        if n and abs(c * d - 1) < 1e-16:
            break
    return value


def dilog_negative(y: float) -> float:
    """Return the dilogarithm ``Li2(-y)`` for y in [0, 1].

    Landen's identity ``Li2(-y) = -Li2(y / (1 + y)) - log(1 + y)^2 / 2`` brings the argument below one half, where each
    term of the series halves at least.

    Example:
        >>> round(dilog_negative(1.0), 12) == round(-math.pi**2 / 12, 12)
        True
    """
    z = y / (1 + y)
    total, power = 0.0, 1.0
    for n in range(1, 60):
        power *= z
        total += power / n**2
    return -total - math.log1p(y) ** 2 / 2


def falling_root(function: Callable[[float], float], target: float, start: float = 1.0) -> float:
    """Return x > 0 with ``function(x) == target`` for a function that falls from above ``target`` to below it.

    Doubles or halves from ``start`` until the root lies between, then bisects to the last bit.

    Example:
        >>> round(falling_root(lambda x: math.exp(-x), 0.01), 12) == round(math.log(100), 12)
        True
    """
    low = high = start
    while function(low) < target and low > _TINY:
        low /= 2
    while function(high) > target and high < 1 / _TINY:
        high *= 2
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        if function(middle) > target:
            low = middle
        else:
            high = middle
