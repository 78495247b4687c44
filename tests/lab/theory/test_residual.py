"""The stationary law of the residual, against Top_k with error feedback on real noise."""

from __future__ import annotations

import numpy as np
import pytest

from gaussiank_lab.theory import CUBED, NoiseResidual, Normal, residual_energy_bound

NUMEL, DENSITY, STEPS = 10_000, 0.01, 500
K = int(NUMEL * DENSITY)


@pytest.fixture(scope="module", params=["normal", "uniform", "laplace"])
def walked(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Accumulated vector, threshold and ages after many steps of Top_k on independent noise of unit variance."""
    random = np.random.default_rng(19110877)
    draw = {
        "normal": lambda: random.standard_normal(NUMEL, dtype=np.float32),
        "uniform": lambda: (random.random(NUMEL, dtype=np.float32) - 0.5) * np.float32(12**0.5),
        "laplace": lambda: random.laplace(scale=0.5**0.5, size=NUMEL).astype(np.float32),
    }[request.param]
    u = np.zeros(NUMEL, dtype=np.float32)
    age = np.zeros(NUMEL)
    thresholds = []
    for _ in range(STEPS):
        u = u + draw()
        age += 1
        magnitude = np.abs(u)
        sent = np.argpartition(magnitude, NUMEL - K)[NUMEL - K :]
        thresholds.append(magnitude[sent].min())
        accumulated = u.copy()
        u[sent] = 0
        age[sent] = 0
    return {"e": u, "u": accumulated, "age": age, "threshold": np.array(thresholds[-100:])}


def test_residual_becomes_triangular(walked: dict[str, np.ndarray]) -> None:
    e = walked["e"].astype(np.float64)
    theory = NoiseResidual(DENSITY)
    assert (e**4).mean() / (e**2).mean() ** 2 == pytest.approx(2.4, abs=0.1)
    assert e.std() == pytest.approx(theory.law.std, rel=0.05)
    assert (e**2).mean() == pytest.approx(theory.energy_over_noise, rel=0.1)
    points = np.linspace(-9, 9, 37)
    share = np.searchsorted(np.sort(e), points) / NUMEL
    assert np.abs(share - theory.law.cdf(points)).max() < 0.03


def test_threshold_and_age(walked: dict[str, np.ndarray]) -> None:
    theory = NoiseResidual(DENSITY)
    assert walked["threshold"].mean() == pytest.approx(theory.threshold, rel=0.05)
    assert walked["age"].mean() == pytest.approx(theory.mean_age, rel=0.1)


def test_energy_stays_far_below_the_worst_case(walked: dict[str, np.ndarray]) -> None:
    energy = float((walked["e"].astype(np.float64) ** 2).mean())
    assert energy < residual_energy_bound(CUBED.delta(DENSITY), 1.0) / 10


def test_a_normal_threshold_lies_beyond_the_law_at_small_densities() -> None:
    """Why the published Gaussian_k selects nothing at first under error feedback, from density 0.0143 down."""
    for density, selects in ((0.015, True), (0.014, False), (0.001, False)):
        law = NoiseResidual(density).law
        assert (law.density(Normal(std=law.std).threshold(density)) > 0) == selects


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        NoiseResidual(0.0)
    with pytest.raises(ValueError, match="noise_std must be above 0, got 0"):
        NoiseResidual(0.1, noise_std=0)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\], got 0"):
        residual_energy_bound(0, 1.0)
