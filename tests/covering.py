"""Few combinations that still hold every pair of values: what breaks by two settings together is found without all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

Pair = tuple[int, Any, int, Any]


def covering(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Choose rows of one value for each factor, so that any two values of different factors share a row.

    Greedy and without chance: a row starts from a pair that none has yet, and each other factor takes the value that
    adds most new pairs. The values of a factor must be hashable and differ.

    Example:
        >>> rows = covering("ab", (1, 2), (True, False))
        >>> len(rows), rows[0]
        (4, ('a', 1, True))
    """
    missing: dict[Pair, None] = {
        (one, left, other, right): None
        for one, other in itertools.combinations(range(len(factors)), 2)
        for left in factors[one]
        for right in factors[other]
    }
    rows = []
    while missing:
        one, left, other, right = next(iter(missing))
        row: dict[int, Any] = {one: left, other: right}
        for factor in sorted(set(range(len(factors))) - set(row), key=lambda number: -len(factors[number])):

            def new(value: Any, factor: int = factor, row: dict[int, Any] = row) -> int:
                return sum(_pair(factor, value, at, chosen) in missing for at, chosen in row.items())

            start = len(rows) % len(factors[factor])  # ties go around, or the first values would come up most
            row[factor] = max([*factors[factor][start:], *factors[factor][:start]], key=new)
        for one, other in itertools.combinations(range(len(factors)), 2):
            missing.pop((one, row[one], other, row[other]), None)
        rows.append(tuple(row[factor] for factor in range(len(factors))))
    return rows


def _pair(one: int, left: Any, other: int, right: Any) -> Pair:
    return (one, left, other, right) if one < other else (other, right, one, left)
