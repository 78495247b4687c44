from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from gaussiank_lab.study.fit import best_fit, distribution, fit_laws, histogram
from gaussiank_lab.study.sampling import sketch_of

Draw = Callable[..., torch.Tensor]
NUMEL = 100_000


@pytest.mark.parametrize("law", ["normal", "laplace", "uniform", "triangular", "logistic"])
def test_the_law_of_the_draws_is_near_and_far_ones_are_not(draw: Draw, law: str) -> None:
    distances = {fit.name: fit.distance for fit in fit_laws(sketch_of(draw(law, NUMEL)))}
    assert distances[law] < 1.63 / math.sqrt(NUMEL)  # 1 % of true laws lie further off
    far = {
        "normal": "laplace",
        "laplace": "normal",
        "uniform": "normal",
        "triangular": "laplace",
        "logistic": "uniform",
    }
    assert distances[far[law]] > 0.02


def test_shapes_are_found(draw: Draw) -> None:
    fits = {
        fit.name: fit for fit in fit_laws(sketch_of(torch.from_numpy(np.random.default_rng(0).standard_t(5, NUMEL))))
    }
    assert fits["student_t"].law.df == pytest.approx(5, rel=0.1)  # type: ignore[attr-defined]
    assert fits["student_t"].distance < 0.01
    fits = {fit.name: fit for fit in fit_laws(sketch_of(draw("laplace", NUMEL)))}
    assert getattr(fits["generalised_gaussian"].law, "shape", 0) == pytest.approx(1, rel=0.05)
    assert "student_t" not in {fit.name for fit in fit_laws(sketch_of(draw("uniform", NUMEL)))}


def test_zeros_do_not_spoil_a_fit(draw: Draw) -> None:
    fit = best_fit(sketch_of(draw("sparse", NUMEL)))  # a normal law, nine of ten entries set to zero
    assert fit is not None
    assert fit.name in ("normal", "generalised_gaussian", "student_t")
    assert fit.distance < 0.02
    assert fit.law.std == pytest.approx(1, rel=0.03)


def test_distance_is_kolmogorovs(draw: Draw) -> None:
    u = draw("laplace", 5000)
    fit = {fit.name: fit for fit in fit_laws(sketch_of(u))}["normal"]
    ordered = np.sort(u.numpy())
    law = fit.law.cdf(ordered)
    steps = np.arange(ordered.size + 1) / ordered.size
    exact = max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max())
    assert fit.distance == pytest.approx(exact, abs=0.01)
    assert fit.distance <= exact + 1e-9


def test_distribution_counts(draw: Draw) -> None:
    u = draw("normal", 1000)
    points, share = distribution(sketch_of(u))
    for at in (0, len(points) // 3, len(points) // 2, len(points) - 1):
        inside = float((u.double() < points[at] - 1e-12).float().mean())
        assert share[at] == pytest.approx(inside, abs=1.1e-3)


def test_histogram_has_unit_mass_and_the_laws_density(draw: Draw) -> None:
    edges, density = histogram(sketch_of(draw("normal", NUMEL)))
    assert (np.diff(edges) > 0).all()
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    middle = (edges[1:] + edges[:-1]) / 2
    near = np.abs(np.abs(middle) - 1) < 0.1
    assert density[near] == pytest.approx(np.exp(-(middle[near] ** 2) / 2) / math.sqrt(2 * math.pi), rel=0.05)


def test_a_vector_of_zeros_has_no_law() -> None:
    zeros = sketch_of(torch.zeros(10))
    assert fit_laws(zeros) == []
    assert best_fit(zeros) is None
    assert distribution(zeros)[0].size == histogram(zeros)[0].size == 0
