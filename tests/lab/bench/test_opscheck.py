from __future__ import annotations

import pytest
import torch
from tests.each import each

from gaussiank import ops
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.bench.targets import OPS_TARGETS, CheckConfig, Target, check_ops

SMALL = CheckConfig(large=20_000, small=5000, repeats=2)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return list(check_ops(SMALL))


def test_every_promise_is_measured_once(measured: list[Row]) -> None:
    keys = [row["key"] for row in measured]
    assert sorted(keys) == sorted(set(keys))
    assert {*keys} | {"threads"} == {*OPS_TARGETS}  # two threads need two cores
    for row in measured:
        target = OPS_TARGETS[row["key"]]
        assert row["measured"] > 0 or target.unit == "+%"
        assert row["verdict"] == target.verdict(row["measured"])
        assert (row["target"], row["floor"], row["unit"]) == target[1:]
        assert row["backend"] == ops.backends().active
        assert row["numel"] == (5000 if row["key"].startswith("small") else 20_000)
        assert row["machine"]
        assert row["date"]


def test_threads_are_put_back(measured: list[Row]) -> None:
    before = torch.get_num_threads()
    run = check_ops(SMALL)
    next(run)
    assert torch.get_num_threads() == 1
    run.close()
    assert torch.get_num_threads() == before


@each(
    ("target", "value", "verdict"),
    [
        (Target("", 97, 75, "%"), 97.0, "target met"),
        (Target("", 97, 75, "%"), 96.9, "above floor"),
        (Target("", 97, 75, "%"), 75.0, "above floor"),
        (Target("", 97, 75, "%"), 74.9, "BELOW FLOOR"),
        (Target("", 10, 40, "+%"), -3.0, "target met"),
        (Target("", 10, 40, "+%"), 40.0, "above floor"),
        (Target("", 10, 40, "+%"), 40.1, "BELOW FLOOR"),
        (Target("", 1.1, 1.0, "x"), float("nan"), "BELOW FLOOR"),
    ],
)
def test_verdicts(target: Target, value: float, verdict: str) -> None:
    assert target.verdict(value) == verdict


def test_no_floor_is_above_its_target() -> None:
    for target in OPS_TARGETS.values():
        assert target.verdict(target.target) == "target met"
        assert target.verdict(target.floor) == "above floor"
