"""The special functions against mpmath, which comes with torch."""

from __future__ import annotations

import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaussiank_lab.theory.special import beta_i, dilog_negative, falling_root, gamma_p, gamma_q

SHAPES = st.floats(0.01, 60)


@given(a=SHAPES, x=st.floats(0, 300))
def test_incomplete_gamma(a: float, x: float) -> None:
    upper = float(mpmath.gammainc(a, x, regularized=True))
    lower = float(mpmath.gammainc(a, 0, x, regularized=True))
    assert gamma_q(a, x) == pytest.approx(upper, rel=1e-11, abs=1e-15)
    assert gamma_p(a, x) == pytest.approx(lower, rel=1e-11, abs=1e-15)


@given(a=SHAPES, b=SHAPES, x=st.floats(0, 1))
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    assert beta_i(a, b, x) == pytest.approx(float(mpmath.betainc(a, b, 0, x, regularized=True)), rel=1e-9, abs=1e-14)


@given(y=st.floats(0, 1))
def test_dilogarithm(y: float) -> None:
    assert dilog_negative(y) == pytest.approx(float(mpmath.polylog(2, -y).real), rel=1e-12, abs=1e-300)


def test_ends() -> None:
    assert (gamma_q(2.0, 0.0), gamma_p(2.0, 0.0)) == (1.0, 0.0)
    assert (gamma_q(2.0, math.inf), gamma_p(2.0, math.inf)) == (0.0, 1.0)
    assert (beta_i(2.0, 3.0, 0.0), beta_i(2.0, 3.0, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("root", [1e-9, 0.3, 1.0, 7e8])
def test_root_is_found_from_both_sides(root: float) -> None:
    assert falling_root(lambda x: -x, -root) == pytest.approx(root, rel=1e-15)
