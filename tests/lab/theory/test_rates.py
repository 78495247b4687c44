from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each

from gaussiank_lab.theory import CUBED, LINEAR, SQUARED, Rate

POSITIVE = st.floats(1e-3, 1e3)
RATES = st.builds(Rate, delta=st.floats(1e-3, 1), gap=POSITIVE, smoothness=POSITIVE, second_moment=POSITIVE)


def test_formula() -> None:
    delta, gap, smooth, second = 0.01, 3.0, 2.0, 5.0
    steps = 999
    expected = (4 * gap + smooth * second) / (2 * math.sqrt(steps + 1)) + 4 * smooth**2 * second * (1 - delta) / (
        delta**2 * (steps + 1)
    )
    assert Rate(delta, gap, smooth, second).after(steps) == pytest.approx(expected, rel=1e-14)


def test_without_compression_it_is_plain_sgd() -> None:
    rate = Rate(1.0, 2.0, 1.0, 4.0)
    assert rate.price == 0
    assert rate.transient_steps() == 0
    assert rate.after(3) == pytest.approx(6 / 2)


@given(rate=RATES, share=st.floats(1e-3, 10))
def test_complexity_is_the_first_step_that_reaches_the_target(rate: Rate, share: float) -> None:
    target = share * rate.sgd
    steps = rate.steps_to(target)
    assert rate.after(steps) <= target
    assert steps == 0 or rate.after(steps - 1) > target


@given(rate=RATES)
def test_terms_are_equal_at_the_end_of_the_transient(rate: Rate) -> None:
    steps = rate.transient_steps()
    if steps > 0:
        assert rate.sgd / math.sqrt(steps) == pytest.approx(rate.price / steps)


def test_a_sharper_bound_needs_fewer_steps() -> None:
    needed = [Rate(bound.delta(0.001), 1.0, 1.0, 1.0).steps_to(0.01) for bound in (LINEAR, SQUARED, CUBED)]
    assert needed[0] > 3.9 * needed[1]  # compression's term leads: delta^-2
    assert needed[1] > 2.2 * needed[2]


@each(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 1.0, 1.0), r"delta must be in \(0, 1\], got 0\.0"),
        ((1.1, 1.0, 1.0, 1.0), r"delta must be in \(0, 1\], got 1\.1"),
        ((0.5, -1.0, 1.0, 1.0), "gap must not be negative"),
        ((0.5, 1.0, 0.0, 1.0), "smoothness must be above 0"),
        ((0.5, 1.0, 1.0, 0.0), "second_moment must be above 0"),
    ],
)
def test_bad_constants(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rate(*arguments)


def test_bad_queries() -> None:
    rate = Rate(0.5, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="steps must not be negative, got -1"):
        rate.after(-1)
    with pytest.raises(ValueError, match="target must be above 0, got 0"):
        rate.steps_to(0)
