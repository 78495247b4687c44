from __future__ import annotations

import pytest
from tests.each import each

from gaussiank_lab.train.config import learning_rate


def test_constant_stays() -> None:
    assert {learning_rate(0.3, "constant", step, 10) for step in range(1, 11)} == {0.3}


def test_step_falls_twice_by_ten() -> None:
    rates = [learning_rate(1.0, "step", step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_falls_from_the_first_step_and_stays_above_zero() -> None:
    rates = [learning_rate(2.0, "cosine", step, 100) for step in range(1, 101)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001


@each("schedule", ["constant", "step", "cosine"])
def test_warmup_rises_in_a_line_to_the_highest(schedule: str) -> None:
    rates = [learning_rate(1.0, schedule, step, 40, warmup_steps=4) for step in range(1, 7)]  # type: ignore[arg-type]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert max(rates) == 1.0
