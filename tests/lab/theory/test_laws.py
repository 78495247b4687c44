"""Every law of the table: against the paper's vectors, against its own density, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.each import each

from gaussiank_lab.theory import (
    CUBED,
    LAWS,
    LINEAR,
    SQUARED,
    GeneralisedGaussian,
    Laplace,
    Law,
    Logistic,
    Normal,
    StudentT,
    Triangular,
    Uniform,
)

VECTOR_LAWS = {"normal": Normal(), "laplace": Laplace(), "uniform": Uniform(), "t5": StudentT(5)}
EVERY = [
    *(law() for law in LAWS.values()),
    StudentT(2.5),
    StudentT(30),
    GeneralisedGaussian(0.4),
    GeneralisedGaussian(8),
    Normal(std=1e-4),
    StudentT(4, std=300.0),
]
LIGHT = [law for law in EVERY if law.kurtosis < 10]
DENSITIES = st.floats(1e-6, 1.0)


Form = Callable[[float], float]


def phi(t: float) -> float:
    return math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def logistic_energy(x: float) -> float:
    tail = math.exp(-x)
    dilogarithm = float(mpmath.polylog(2, -tail).real)
    return 1 - 6 / math.pi**2 * (x**2 / (1 + math.exp(x)) + 2 * x * math.log1p(tail) - 2 * dilogarithm)


def student_b(t: float) -> float:
    return 5 / (5 + t**2 * 5 / 3)


def student_tail(t: float) -> float:
    return float(mpmath.betainc(2.5, 0.5, 0, student_b(t), regularized=True))


def points_of(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of cells up to where the law ends, closer near zero and wider far out, and the cells' widths."""
    edges = law.threshold(1e-12) * np.linspace(0, 1, 200_001) ** 3
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def test_closed_forms_of_the_paper(paper_vectors: dict[str, Any]) -> None:
    checked = 0
    for name, rows in paper_vectors["closed_form"].items():
        for density, row in rows.items():
            law = VECTOR_LAWS[name]
            assert law.threshold(float(density)) == pytest.approx(row["t_unit_std"], rel=1e-9)
            assert law.contraction(float(density)) == pytest.approx(row["gamma"], rel=1e-9)
            checked += 1
    assert checked == 40


CLOSED: list[tuple[Law, Form, Form, float]] = [
    (Normal(), lambda t: math.erfc(t / math.sqrt(2)), lambda t: math.erf(t / math.sqrt(2)) - 2 * t * phi(t), 3),
    (
        Laplace(std=math.sqrt(2)),
        lambda t: math.exp(-t),
        lambda t: 1 - math.exp(-t) * (1 + t + t**2 / 2),
        6,
    ),
    (Logistic(std=math.pi / math.sqrt(3)), lambda t: 2 / (1 + math.exp(t)), logistic_energy, 4.2),
    (Uniform(std=1 / math.sqrt(3)), lambda t: 1 - t, lambda t: t**3, 1.8),
    (Triangular(std=1 / math.sqrt(6)), lambda t: (1 - t) ** 2, lambda t: 4 * t**3 - 3 * t**4, 2.4),
    (StudentT(5), student_tail, lambda t: 1 - float(mpmath.betainc(1.5, 1.5, 0, student_b(t), regularized=True)), 9),
    (
        GeneralisedGaussian(0.5, std=math.sqrt(120)),
        lambda t: math.exp(-math.sqrt(t)) * (1 + math.sqrt(t)),
        lambda t: float(mpmath.gammainc(6, 0, math.sqrt(t), regularized=True)),
        25.2,
    ),
]


@each(("law", "tail", "energy", "kurtosis"), CLOSED)
def test_closed_forms_by_hand(law: Law, tail: Form, energy: Form, kurtosis: float) -> None:
    assert law.kurtosis == pytest.approx(kurtosis, rel=1e-9)
    for density in (0.9, 0.3, 0.01, 1e-5):
        threshold = law.threshold(density)
        assert tail(threshold) == pytest.approx(density, rel=1e-9)
        assert law.contraction(density) == pytest.approx(energy(threshold), rel=1e-9)


def test_percentile_points_of_the_paper(paper_vectors: dict[str, Any]) -> None:
    for density, row in paper_vectors["ppf"].items():
        assert Normal().threshold(float(density)) == pytest.approx(row["two_sided"], rel=1e-9)
        if float(density) < 0.5:
            assert Normal().threshold(2 * float(density)) == pytest.approx(row["one_sided"], rel=1e-9)


@each("law", LIGHT, ids=repr)
def test_density_and_energy_are_integrals_of_the_pdf(law: Law) -> None:
    x, width = points_of(law)
    mass = 2 * law.pdf(x) * width  # the cell at the uniform law's edge is the coarsest
    assert mass.sum() == pytest.approx(1, rel=2e-5)
    assert (mass * x).sum() == pytest.approx(law.mean_abs, rel=3e-5)
    assert (mass * x**2).sum() == pytest.approx(law.std**2, rel=1e-4)
    assert (mass * x**4).sum() == pytest.approx(law.kurtosis * law.std**4, rel=2e-2)
    for density in (0.5, 0.1, 0.01, 0.001):
        below = x <= law.threshold(density)
        assert mass[~below].sum() == pytest.approx(density, rel=1e-2)
        assert (mass * x**2)[below].sum() / law.std**2 == pytest.approx(law.contraction(density), rel=1e-3)


@each("law", EVERY, ids=repr)
def test_every_law_keeps_all_three_bounds(law: Law) -> None:
    for density in np.geomspace(1e-6, 1, 40):
        gamma = law.contraction(float(density))
        assert 0 <= gamma <= CUBED.contraction(density) + 1e-14
        assert CUBED.contraction(density) <= SQUARED.contraction(density) <= LINEAR.contraction(density)
        assert law.delta(float(density)) >= LINEAR.delta(density) * (1 - 1e-9)


@settings(max_examples=200)
@given(law=st.sampled_from(EVERY), density=DENSITIES)
def test_threshold_and_density_undo_each_other(law: Law, density: float) -> None:
    assert law.density(law.threshold(density)) == pytest.approx(density, rel=1e-7, abs=1e-12)


@settings(max_examples=200)
@given(law=st.sampled_from(EVERY), one=DENSITIES, other=DENSITIES)
def test_more_entries_leave_less(law: Law, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert law.threshold(low) >= law.threshold(high) * (1 - 1e-12)
    assert law.contraction(low) >= law.contraction(high) - 1e-12


@each("law", EVERY, ids=repr)
def test_cdf_is_symmetric_and_reaches_both_ends(law: Law) -> None:
    points = law.std * np.array([[-1e9, -1.0], [0.0, 1.0]])
    values = law.cdf(points)
    assert values.shape == (2, 2)
    assert values[0, 0] == pytest.approx(0, abs=1e-9)
    assert values[1, 0] == 0.5
    assert values[0, 1] + values[1, 1] == pytest.approx(1)
    assert law.threshold(1.0) == pytest.approx(0, abs=1e-12 * law.std)
    assert law.contraction(1.0) == pytest.approx(0, abs=1e-12)


@each("law", EVERY, ids=repr)
def test_the_deviation_scales_thresholds_alone(law: Law) -> None:
    kwargs = {name: getattr(law, name) for name in ("df", "shape") if hasattr(law, name)}
    unit = type(law)(**kwargs)
    assert law.threshold(0.01) == pytest.approx(law.std * unit.threshold(0.01))
    assert law.contraction(0.01) == pytest.approx(unit.contraction(0.01))


@each("density", [0.5, 0.01, 0.001])
def test_families_contain_the_laws_they_should(density: float) -> None:
    for law, same in ((GeneralisedGaussian(1), Laplace()), (GeneralisedGaussian(2), Normal())):
        assert law.threshold(density) == pytest.approx(same.threshold(density), rel=1e-9)
        assert law.contraction(density) == pytest.approx(same.contraction(density), rel=1e-9)
    assert GeneralisedGaussian(100).contraction(density) == pytest.approx(Uniform().contraction(density), rel=2e-2)
    assert StudentT(1e5).contraction(density) == pytest.approx(Normal().contraction(density), rel=1e-3)


@each("df", [2.1, 3.0, 5.0, 40.0])
def test_student_t_is_found_from_two_moments(df: float) -> None:
    found = StudentT.matching(StudentT(df).mean_abs * 2, 2.0)
    assert found is not None
    assert (found.df, found.std) == (pytest.approx(df, rel=1e-6), 2.0)


@each("shape", [0.15, 1.0, 2.0, 50.0])
def test_generalised_gaussian_is_found_from_two_moments(shape: float) -> None:
    found = GeneralisedGaussian.matching(GeneralisedGaussian(shape).mean_abs * 2, 2.0)
    assert found is not None
    assert (found.shape, found.std) == (pytest.approx(shape, rel=1e-6), 2.0)


def test_moments_that_no_member_has_give_none() -> None:
    assert StudentT.matching(Uniform().mean_abs, 1.0) is None
    assert GeneralisedGaussian.matching(1.0, 1.0) is None
    assert GeneralisedGaussian.matching(1e-6, 1.0) is None


def test_kurtosis_without_a_fourth_moment() -> None:
    assert StudentT(4).kurtosis == math.inf
    assert Triangular().kurtosis < Normal().kurtosis < Logistic().kurtosis < Laplace().kurtosis


@each("law", LAWS.values(), ids=LAWS)
def test_bad_arguments(law: type[Law]) -> None:
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="std must be above 0 and finite"):
            law(std=std)
    for density in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got"):
            law().threshold(density)
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got"):
            law().contraction(density)


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match=r"df must be above 2 and finite, got 2\."):
        StudentT(2.0)
    with pytest.raises(ValueError, match=r"shape must be in \[0\.1, 100\], got 0\."):
        GeneralisedGaussian(0.0)
