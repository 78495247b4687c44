"""The cost model against rows: made-up ones that it can explain, and ones that it does not know."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gaussiank_lab.bench.net.links import parse_rate
from gaussiank_lab.bench.net.predict import Judged, judge, method_of, order_right, regrets, show_predictions
from gaussiank_lab.bench.rows import Row

NUMEL, WORKERS = 1_000_000, 4


def row(method: str, rate_mbit: float, step_s: float, **others: Any) -> Row:
    return {
        "kind": "net", "model": "m", "method": method, "workers": WORKERS, "cores": 2, "rate": f"{rate_mbit:g}mbit",
        "density": 0.001, "rate_mbit": rate_mbit, "numel": NUMEL, "batch_size": 8, "step_s": step_s, "select_s": 0.002,
        "finish_s": 0.001, **others,
    }  # fmt: skip


def rows() -> list[Row]:
    """A computing time of 30 ms, and messages over four fifths of each rate, less what may leave at once."""
    made = []
    for rate in (5.0, 10.0, 20.0, 50.0, 100.0):
        made.append(row("alone", rate, 0.03, forward_s=0.01, backward_s=0.015, optimizer_s=0.005))
        second = 8 / (0.8e6 * rate)
        burst = parse_rate(f"{rate:g}mbit").burst_bytes
        made.append(row("ddp", rate, 0.03 + 6 * (NUMEL - burst) * second))
        made.append(row("topk", rate, 0.033 + max(0, 3 * 3500 - burst) * second))
    return made


def test_it_explains_what_follows_its_rules_in_settings_that_it_has_not_seen() -> None:
    knobs, judged = judge(rows())
    held = [abs(one.error) for one in judged if one.held_out]
    assert len(judged) == 10
    assert len(held) == 5
    assert statistics.median(held) < 0.05
    assert max(held) < 0.2
    assert knobs.reach == pytest.approx(0.8, abs=0.06)


def test_a_run_is_shown_with_what_was_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows()))
    show_predictions(tmp_path, Console(width=80))
    said = capsys.readouterr().out
    text = " ".join(said.split())
    assert "Held out: median error " in text
    assert "in 5 of 10 settings. The faster of two methods is named in 100 % of pairs, and in 100 % of those" in text
    assert "costs at most 0 % over the fastest measured." in text
    assert sum(line.endswith("*") for line in said.splitlines()) == 5


def test_the_wrong_order_is_counted() -> None:
    fast, slow = row("topk", 5.0, 1.0), row("ddp", 5.0, 2.0)
    assert order_right([Judged(fast, 1.0, True), Judged(slow, 2.0, True)]) == 1
    assert order_right([Judged(fast, 3.0, True), Judged(slow, 2.0, True)]) == 0
    assert math.isnan(order_right([Judged(fast, 1.0, True), Judged(row("ddp", 9.0, 2.0), 2.0, True)]))
    close = row("topk/split", 5.0, 1.04)
    assert order_right([Judged(fast, 3.0, True), Judged(close, 2.0, True)]) == 0
    assert math.isnan(order_right([Judged(fast, 3.0, True), Judged(close, 2.0, True)], tie=0.05))


def test_a_wrong_choice_costs_what_it_was_measured_to_cost() -> None:
    fast, slow = row("topk", 5.0, 1.0), row("ddp", 5.0, 1.5)
    assert regrets([Judged(fast, 1.0, True), Judged(slow, 2.0, True)]) == [("topk", 0.0)]
    assert regrets([Judged(fast, 3.0, True), Judged(slow, 2.0, True)]) == [("ddp", 0.5)]


def test_what_the_model_does_not_know_is_left_out() -> None:
    assert method_of(row("topk/split", 5.0, 1.0)) is not None
    assert all(method_of(row(name, 5.0, 1.0)) is None for name in ("alone", "paper-topk", "ddp-powersgd", "topk/auto"))
    assert method_of(row("topk", 5.0, 1.0, model="vector:1e6")) is None


def test_too_few_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="RUN must hold at least 4 rows of ddp"):
        judge(rows()[:3])
