"""What holds for every number that a user gives, on the command line or in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST_FLOAT = 3.4e38  # of float32, in which models compute
LARGEST_INT = 2**53  # that JSON holds exactly wherever it is read


def require_numbers(given: Mapping[str, Any]) -> None:
    """Raise unless every number is finite and no larger than torch can take.

    Args:
        given: settings or options, by name; what is no number is passed over.

    Raises:
        ValueError: one is not; names it.

    Example:
        >>> require_numbers({"lr": 0.1, "model": "lenet5"})
        >>> require_numbers({"lr": float("inf")})
        Traceback (most recent call last):
            ...
        ValueError: lr must be a finite number, got inf. Give another one.
    """
    for name, value in given.items():
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            rule = f"at most {LARGEST_FLOAT:g}" if math.isfinite(value) else "a finite number"
            raise ValueError(f"{name} must be {rule}, got {value:g}. Give another one.")
        if isinstance(value, int) and not abs(value) <= LARGEST_INT:
            raise ValueError(f"{name} must be at most {LARGEST_INT:,}, got {value}. Give another one.")
