from __future__ import annotations

import pytest
import torch

from gaussiank import ops
from gaussiank_lab.bench.opscheck import PROMISES, CheckConfig, Promise, check
from gaussiank_lab.bench.rows import Row

SMALL = CheckConfig(large=20_000, small=5000, repeats=2)


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return list(check(SMALL))


def test_every_promise_is_measured_once(measured: list[Row]) -> None:
    keys = [row["key"] for row in measured]
    assert sorted(keys) == sorted(set(keys))
    assert {*keys} | {"threads"} == {*PROMISES}  # two threads need two cores
    for row in measured:
        promise = PROMISES[row["key"]]
        assert row["measured"] > 0 or promise.unit == "+%"
        assert row["verdict"] == promise.verdict(row["measured"])
        assert (row["target"], row["floor"], row["unit"]) == promise[1:]
        assert row["backend"] == ops.backends().active
        assert row["numel"] == (5000 if row["key"].startswith("small") else 20_000)
        assert row["machine"]
        assert row["date"]


def test_threads_are_put_back(measured: list[Row]) -> None:
    before = torch.get_num_threads()
    run = check(SMALL)
    next(run)
    assert torch.get_num_threads() == 1
    run.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("promise", "value", "verdict"),
    [
        (Promise("", 97, 75, "%"), 97.0, "target met"),
        (Promise("", 97, 75, "%"), 96.9, "above floor"),
        (Promise("", 97, 75, "%"), 75.0, "above floor"),
        (Promise("", 97, 75, "%"), 74.9, "BELOW FLOOR"),
        (Promise("", 10, 40, "+%"), -3.0, "target met"),
        (Promise("", 10, 40, "+%"), 40.0, "above floor"),
        (Promise("", 10, 40, "+%"), 40.1, "BELOW FLOOR"),
        (Promise("", 1.1, 1.0, "x"), float("nan"), "BELOW FLOOR"),
    ],
)
def test_verdicts(promise: Promise, value: float, verdict: str) -> None:
    assert promise.verdict(value) == verdict


def test_no_floor_is_above_its_target() -> None:
    for promise in PROMISES.values():
        assert promise.verdict(promise.target) == "target met"
        assert promise.verdict(promise.floor) == "above floor"
