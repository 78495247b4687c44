from __future__ import annotations

import json
import math
from typing import Any

from tests.each import each

from gaussiank_lab.metric import ACCURACY, Metric

NATS = Metric("loss", "loss", "nats/byte", "about")


def test_values_are_written_with_unit_and_decimals() -> None:
    assert (ACCURACY.number(0.8416), ACCURACY.text(0.8416)) == ("84.2", "84.2 %")
    assert (NATS.number(1.23456), NATS.text(1.23456)) == ("1.235", "1.235 nats/byte")
    assert (NATS.number(math.nan), NATS.text(math.inf)) == ("", "")


def test_better_is_higher_or_lower_and_a_missing_value_never_is() -> None:
    assert ACCURACY.better(0.9, 0.8)
    assert not NATS.better(0.9, 0.8)
    assert NATS.better(0.8, 0.9)
    assert not NATS.better(0.8, 0.8)
    assert NATS.better(9.0, math.nan)
    assert not NATS.better(math.nan, 9.0)
    assert not ACCURACY.better(math.nan, math.nan)


def test_a_metric_survives_its_record() -> None:
    for metric in (ACCURACY, NATS):
        assert Metric.from_record(json.loads(json.dumps(metric.as_record()))) == metric


@each(
    "record",
    [
        None,
        "loss",
        {},
        {**NATS.as_record(), "name": 3},
        {**NATS.as_record(), "scale": "1"},
        {**NATS.as_record(), "scale": True},
        {**NATS.as_record(), "decimals": 1.5},
        {**NATS.as_record(), "decimals": -1},
        {**NATS.as_record(), "higher_is_better": 1},
    ],
)
def test_a_run_without_a_sound_metric_is_judged_by_accuracy(record: Any) -> None:
    assert Metric.from_record(record) == ACCURACY
