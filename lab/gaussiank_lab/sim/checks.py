"""One clear sentence for a value that no cluster can have."""

from __future__ import annotations

import math


def require_above_zero(field: str, value: float, hint: str) -> None:
    """Raise unless ``value`` is a finite number above 0.

    Raises:
        ValueError: it is not; names the field.

    Example:
        >>> require_above_zero("bandwidth_bits_s of 10gbe", 0, "A cluster without a link has one worker.")
        Traceback (most recent call last):
            ...
        ValueError: bandwidth_bits_s of 10gbe must be above 0, got 0. A cluster without a link has one worker.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} must be above 0, got {value:g}. {hint}")


def require_at_least(field: str, value: float, least: float, hint: str) -> None:
    """Raise unless ``value`` is a finite number that is not below ``least``.

    Raises:
        ValueError: it is not; names the field.
    """
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{field} must be at least {least:g}, got {value:g}. {hint}")
