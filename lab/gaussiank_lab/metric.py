"""What a run is judged by: the number of its table, plots and report, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """Describe a measure of the test set.

    Args:
        key: where evaluation and closing records hold its value.
        name: what a reader calls it.
        unit: of the value shown.
        about: one sentence on what it measures.
        scale: shown value over recorded value: 100 where a fraction is shown in percent.
        decimals: shown.
        higher_is_better: whether a larger value is a better one.

    Example:
        >>> ACCURACY.text(0.8412)
        '84.1 %'
        >>> ACCURACY.better(0.9, 0.8)
        True
    """

    key: str
    name: str
    unit: str
    about: str = ""
    scale: float = 1.0
    decimals: int = 3
    higher_is_better: bool = False

    def number(self, value: float) -> str:
        """Write a recorded value without its unit; a missing one is empty."""
        return f"{self.scale * value:.{self.decimals}f}" if math.isfinite(value) else ""

    def text(self, value: float) -> str:
        """Write a recorded value with its unit; a missing one is empty."""
        return f"{self.number(value)} {self.unit}" if math.isfinite(value) else ""

    def better(self, value: float, other: float) -> bool:
        """Tell whether ``value`` is better than ``other``; a missing value is never better."""
        if not math.isfinite(value) or not math.isfinite(other):
            return math.isfinite(value)
        return value > other if self.higher_is_better else value < other

    def as_record(self) -> dict[str, Any]:
        """Return the description as JSON values, for the run record."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: object) -> Metric:
        """Read a run record's description; runs of 0.1.0 have none and are judged by accuracy."""
        if not isinstance(record, Mapping):
            return ACCURACY
        values: dict[str, Any] = {}
        for name, kind in _FIELDS.items():
            value = record.get(name)
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, (float, int) if kind is float else kind
            ):
                return ACCURACY
            values[name] = value
        return cls(**values) if 0 <= values["decimals"] <= 9 else ACCURACY


ACCURACY = Metric(
    "accuracy",
    "accuracy",
    "%",
    "Share of the test set answered correctly after the last step.",
    scale=100.0,
    decimals=1,
    higher_is_better=True,
)
_FIELDS = {field: type(value) for field, value in asdict(ACCURACY).items()}
