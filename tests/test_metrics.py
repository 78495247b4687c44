from __future__ import annotations

import pytest
from tests.each import each

from gaussiank import metrics
from gaussiank.metrics import Metrics, RoundTotals, Totals


@each(("dense_bytes", "sent_bytes", "compression"), [(1000, 8, 125.0), (6, 12, 0.5), (7, 7, 1.0)])
def test_compression_is_dense_bytes_over_sent_bytes(dense_bytes: int, sent_bytes: int, compression: float) -> None:
    assert Metrics(dense_bytes=dense_bytes, sent_bytes=sent_bytes).compression == compression


def test_compression_of_one_worker_is_one() -> None:
    assert Metrics(numel=100, k=1, kept=1).compression == 1.0


def test_names_stay_and_numbers_are_plain() -> None:
    """Dashboards of users read them."""
    assert Metrics(step=2, kept=3, sent_bytes=5, dense_bytes=10, launched_at=1.0, arrived_at=3.5).as_dict() == {
        "step": 2, "density": 1.0, "calls": 0, "numel": 0, "k": 0, "kept": 3, "sent_bytes": 5, "dense_bytes": 10,
        "compression": 2.0, "select_s": 0.0, "exchange_s": 0.0, "finish_s": 0.0, "exposed_s": 2.5,
    }  # fmt: skip


class Board:
    """As TensorBoard's ``SummaryWriter``."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.written.append((tag, scalar_value, global_step))


class Run:
    """As a run of Weights & Biases."""

    def log(self, data: dict[str, float], step: int) -> None:
        self.logged = data, step


def test_writers_get_all_of_it_in_one_line() -> None:
    metrics, board, run = Metrics(step=4, kept=3), Board(), Run()
    metrics.write(board)
    metrics.write(run, 0, prefix="mine/")
    assert [tag for tag, _, _ in board.written] == [f"gaussiank/{name}" for name in metrics.as_dict()]
    assert ("gaussiank/kept", 3, 4) in board.written
    assert run.logged == ({f"mine/{name}": value for name, value in metrics.as_dict().items()}, 0)
    with pytest.raises(ValueError, match=r"^writer must have add_scalar or log, got list\. Give a SummaryWriter"):
        metrics.write([])


def step(began: float, launched: float, arrived: float) -> Metrics:
    return Metrics(
        calls=2, sent_bytes=10_000, dense_bytes=1_000_000, select_s=0.02, began_at=began, launched_at=launched,
        arrived_at=arrived,
    )  # fmt: skip


def test_totals_tell_what_was_sent_hidden_and_what_dense_had_taken() -> None:
    totals = Totals()
    totals.add(Metrics(), 1.0)  # before the first step
    totals.add(step(1.0, 1.2, 1.21), 2.0)  # a hundredth of the step: hidden
    totals.add(step(2.0, 2.2, 2.5), 3.0)
    totals.add(step(3.0, 3.2, 3.2))  # the next has not begun
    assert (totals.steps, totals.timed, totals.hidden, totals.sent_bytes) == (3, 2, 1, 30_000)
    # a megabyte at 1 MB/s: 1 s, of which 0.2 - 0.02 hide; the step of 1 s has 0.02 of selection and 0.155 of waiting
    assert totals.dense_ratio(1e6, 0.0, 2) == pytest.approx(1 - 0.02 - 0.155 + 1 - 0.18)
    # at 1 GB/s all but the last of two buckets hides
    assert totals.dense_ratio(1e9, 0.0, 2) == pytest.approx(1 - 0.02 - 0.155 + 0.0005)
    assert totals.text(totals.dense_ratio(1e9, 0.0, 2)) == (
        "3 steps: sent 30 kB instead of 3 MB; the exchange hid behind backward in 50 % of steps; "
        "dense would have been 17 % faster: take the hook out."
    )
    assert totals.text(1.3).endswith("dense would have been 30 % slower.")
    assert totals.text(0.99).endswith("dense would have been as fast: take the hook out, unless the link is shared.")
    assert (
        Totals(steps=1, sent_bytes=70, dense_bytes=250_000_000_000).text()
        == "1 steps: sent 70 bytes instead of 250 GB."
    )


def test_totals_of_rounds_tell_what_was_sent_and_what_dense_had_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 2.0, 3.5, 3.5])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    totals = RoundTotals(dense_bytes=1_000_000, buckets=4, world_size=2)
    assert totals.dense_ratio(1e6, 0.0) is None
    for ended in ([], [], [(10_000, 0.5)]):
        totals.count(1, ended)
    totals.count(0, [(20_000, float("nan"))])  # finish; a round that was resumed has no time
    # steps of 1 s beside the waiting, whose backward hides two thirds of a second; a megabyte takes 2 s
    assert totals.dense_ratio(0.5e6, 0.0) == pytest.approx((1 + 2 - 2 / 3) / 1.25)
    assert totals.dense_ratio(1e9, 0.01) == pytest.approx((1 + (0.001 + 4 * 2 * 0.01) / 4) / 1.25)
    assert totals.text(0.8) == (
        "3 steps, 2 rounds: sent 30 kB instead of 3 MB; training stood still for 20 % of the time; "
        "dense at every step would have been 20 % faster: take LocalSteps out."
    )


def test_begins_at_zero_and_dense() -> None:
    fresh = Metrics(step=3)
    assert (fresh.step, fresh.density) == (3, 1.0)
    assert (fresh.numel, fresh.k, fresh.kept, fresh.sent_bytes, fresh.dense_bytes) == (0, 0, 0, 0, 0)
    assert (fresh.select_s, fresh.exchange_s, fresh.finish_s, fresh.launched_at) == (0.0, 0.0, 0.0, 0.0)
