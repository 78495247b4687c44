"""The three bounds on random vectors: true where the premise holds, and the vectors that break them elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.each import each

from gaussiank_lab.theory import BOUNDS, CUBED, LAWS, LINEAR, SQUARED, Bound
from gaussiank_lab.theory.bounds import energy_blocks, is_below_line, is_convex, tail_share

ENTRIES = st.floats(-1e3, 1e3, allow_subnormal=False)
VECTORS = st.integers(1, 40).flatmap(lambda numel: arrays(np.float64, numel, elements=ENTRIES))
FALLING = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=40)


def ends(blocks: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Densities at the ends of blocks, and the true gamma there."""
    share, energy = blocks
    total = energy.sum()
    return np.cumsum(share), 1 - np.cumsum(energy) / total if total > 0 else np.zeros_like(energy)


@given(vector=VECTORS, data=st.data())
def test_linear_bound_holds_for_every_vector(vector: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, vector.size))
    assert tail_share(vector, k) <= LINEAR.contraction(k / vector.size) + 1e-12
    assert LINEAR.premise(*energy_blocks(vector))


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@given(vector=VECTORS, blocks=st.integers(1, 12))
def test_a_premise_that_holds_proves_the_bound(bound: Bound, vector: np.ndarray, blocks: int) -> None:
    cut = energy_blocks(vector, blocks)
    if bound.premise(*cut):
        assert bound.holds(*ends(cut)).all()


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@given(rises=FALLING)
def test_bound_holds_to_the_last_digit_on_vectors_made_for_it(bound: Bound, rises: list[float]) -> None:
    """a = weight * h with h non-decreasing: every such vector keeps the bound, without a tolerance for d."""
    numel = len(rises)
    edges = np.arange(numel + 1) / numel
    weight = edges[1:] ** bound.power - edges[:-1] ** bound.power
    u = np.sqrt(weight * np.cumsum(rises))
    assert bound.premise(*energy_blocks(u))
    for k in range(numel + 1):
        assert tail_share(u, k) <= bound.contraction(k / numel) + 1e-12


@given(drops=FALLING)
def test_convex_to_zero_implies_the_squared_premise(drops: list[float]) -> None:
    squares = np.cumsum(np.cumsum(np.sort(drops)))  # steps that grow: convex
    squares = np.concatenate(([0.0], squares))  # and zero at the smallest entry
    blocks = energy_blocks(np.sqrt(squares))
    assert is_convex(*blocks) or squares[-1] == 0
    assert SQUARED.premise(*blocks)
    for k in range(squares.size + 1):
        assert tail_share(np.sqrt(squares), k) <= SQUARED.contraction(k / squares.size) + 1e-12


@given(vector=VECTORS, blocks=st.integers(1, 12))
def test_is_convex_implies_the_squared_premise_on_any_blocks(vector: np.ndarray, blocks: int) -> None:
    cut = energy_blocks(vector, blocks)
    if is_convex(*cut):
        assert SQUARED.premise(*cut)


def test_paper_counter_example_breaks_the_squared_bound() -> None:
    u = np.sqrt([4.0, 3.0, 2.0, 1.0])
    assert tail_share(u, 2) == pytest.approx(0.30)
    assert SQUARED.contraction(0.5) == 0.25
    assert not SQUARED.holds(0.5, tail_share(u, 2))
    blocks = energy_blocks(u)
    assert not is_convex(*blocks)  # convex alone, but it does not reach zero
    assert not SQUARED.premise(*blocks)
    assert not CUBED.premise(*blocks)


@each("numel", [2, 10, 1000])
def test_discrete_edge(numel: int) -> None:
    """u_i^2 = d - i + 1 exceeds the squared bound by (1 - k/d) k / (d (d + 1)); u_i^2 = d - i does not."""
    u = np.sqrt(np.arange(numel, 0, -1.0))
    for k in (1, numel // 2):
        excess = tail_share(u, k) - SQUARED.contraction(k / numel)
        assert excess == pytest.approx((1 - k / numel) * k / (numel * (numel + 1)), abs=1e-12)
        assert tail_share(np.sqrt(np.arange(numel)), k) <= SQUARED.contraction(k / numel) + 1e-12
    assert not SQUARED.premise(*energy_blocks(u))
    assert SQUARED.premise(*energy_blocks(np.sqrt(np.arange(numel))))


@each(("law", "power"), [("uniform", 3), ("triangular", 3), ("normal", 3), ("laplace", 3)])
def test_bell_shapes_fulfil_every_premise(law: str, power: int) -> None:
    numel = 2000
    u = np.array([LAWS[law]().threshold((i + 0.5) / numel) for i in range(numel)])
    for bound in BOUNDS.values():
        assert bound.premise(*energy_blocks(u, 64)) == (bound.power <= power or law == "uniform")
        assert bound.holds(0.01, tail_share(u, 20))


def test_two_humps_break_the_cubed_bound_and_its_premise_says_so() -> None:
    u = np.concatenate((np.full(500, 1.0), np.full(500, 0.9)))
    assert not CUBED.holds(0.5, tail_share(u, 500))
    assert not CUBED.premise(*energy_blocks(u, 10))
    assert not SQUARED.premise(*energy_blocks(u, 10))


def test_line(rng_numpy: np.random.Generator) -> None:
    normal = np.sort(np.abs(rng_numpy.standard_normal(10_000)))
    assert is_below_line(*energy_blocks(normal, 50), peak=float(normal[-1] ** 2))
    assert is_below_line(*energy_blocks([2.0, 1.0, 0.5]), peak=4.0)
    flat = np.ones(100)
    assert not is_below_line(*energy_blocks(flat, 10), peak=1.0)


@pytest.fixture
def rng_numpy() -> np.random.Generator:
    return np.random.default_rng(19110877)


@given(density=st.floats(1e-9, 1))
def test_delta_is_one_minus_the_bound_and_grows_with_the_power(density: float) -> None:
    for bound in BOUNDS.values():
        assert bound.delta(density) == pytest.approx(1 - bound.contraction(density), abs=1e-15, rel=1e-6)
    assert LINEAR.delta(density) <= SQUARED.delta(density) <= CUBED.delta(density)


def test_delta_of_the_paper() -> None:
    k, d = 7, 1000
    assert SQUARED.delta(k / d) == pytest.approx((2 * k * d - k * k) / d**2, rel=1e-14)
    assert SQUARED.delta(1e-9) == pytest.approx(2e-9, rel=1e-8)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize(("numel", "density"), [(1000, 0.01), (100_000, 0.001)])
def test_tail_share_of_the_paper_grids(
    paper_vectors: dict[str, Any], grid: Any, name: str, numel: int, density: float
) -> None:
    row = paper_vectors["grids"][f"{name} d={numel} rho={density:g}"]
    assert tail_share(grid(name, numel).numpy(), row["k"]) == pytest.approx(row["topk_gamma"], rel=1e-9)


def test_top_2_of_the_paper() -> None:
    assert tail_share([3.0, -1.0, 2.0, 0.5], 2) * 14.25 == pytest.approx(1.25)


def test_zeros_and_ends() -> None:
    assert tail_share(np.zeros(3), 1) == 0
    assert tail_share([1.0, 2.0], 0) == 1
    assert all(bound.premise(*energy_blocks(np.zeros(3))) for bound in BOUNDS.values())


def test_bad_vectors() -> None:
    for vector in ([], [[1.0]], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="vector must be flat, finite and not empty"):
            tail_share(vector, 0)
    with pytest.raises(ValueError, match=r"k must be in \[0, numel = 2\], got 3"):
        tail_share([1.0, 2.0], 3)
