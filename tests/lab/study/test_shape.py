from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaussiank_lab.study.fit import bell_dip, pi_squared, premise_blocks, shape_of
from gaussiank_lab.study.sampling import sketch_of

Draw = Callable[..., torch.Tensor]
NUMEL = 50_000


@pytest.mark.parametrize("law", ["normal", "laplace", "t3", "triangular", "logistic", "cauchy"])
def test_bells_fulfil_the_assumptions_and_keep_the_bounds(draw: Draw, law: str) -> None:
    for density in (0.001, 0.01):
        shape = shape_of(sketch_of(draw(law, NUMEL)), density)
        assert shape.bell
        assert shape.below_line
        assert shape.convex
        assert all(verdict.premise and verdict.holds for verdict in shape.verdicts.values())
        assert shape.contraction <= shape.verdicts["cubed"].limit


def test_two_humps_are_no_bell_and_break_premises(draw: Draw) -> None:
    u = draw("normal", NUMEL) * 0.2
    u[::2] += 2
    u[1::2] -= 2
    shape = shape_of(sketch_of(u), 0.01)
    assert not shape.bell
    assert shape.dip > 0.1
    assert not shape.verdicts["squared"].premise
    assert not shape.verdicts["cubed"].premise
    assert shape.verdicts["linear"].premise
    assert not shape.verdicts["cubed"].holds


def test_one_sided_hump_is_seen(draw: Draw) -> None:
    u = draw("normal", NUMEL)
    u[: NUMEL // 10] = 1.5 + 0.01 * u[: NUMEL // 10]
    assert not shape_of(sketch_of(u), 0.01).bell


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    numel=st.integers(300, 3000),
    density=st.floats(0.002, 0.5),
    humps=st.floats(0, 4),
    power=st.floats(0.3, 3),
)
def test_a_premise_that_holds_proves_its_bound(
    seed: int, numel: int, density: float, humps: float, power: float
) -> None:
    random = np.random.default_rng(seed)
    u = np.sign(random.standard_normal(numel)) * np.abs(random.standard_normal(numel) + humps) ** power
    shape = shape_of(sketch_of(torch.from_numpy(u)), density)
    for verdict in shape.verdicts.values():
        assert verdict.holds or not verdict.premise


@pytest.mark.parametrize("density", [1.0, 0.5, 0.3, 0.004])
def test_blocks_cover_everything_and_end_at_k(draw: Draw, density: float) -> None:
    sketch = sketch_of(draw("laplace", NUMEL))
    shares, energies = premise_blocks(sketch, density)
    assert shares.sum() == pytest.approx(1)
    assert energies.sum() == pytest.approx(sketch.square_sum / NUMEL)
    assert np.abs(np.cumsum(shares) - density).min() < 1e-12
    assert (np.diff(energies / shares) < 0).all()


def test_dip_of_a_known_shape() -> None:
    """A density of 1/4 on [0, 1), 3/4 on [1, 2): the line from 0 to 2 lies 0.25 above F at 1, twice the distance."""
    u = torch.cat((torch.linspace(0.001, 0.999, 1000), torch.linspace(1.0005, 1.9995, 3000)))
    sketch = sketch_of(u)
    assert bell_dip(sketch.counts[0], sketch) == pytest.approx(0.125, abs=0.005)
    assert bell_dip(sketch.counts[1], sketch) == 0


def test_pi_squared_is_the_ordered_vector(draw: Draw) -> None:
    u = draw("normal", NUMEL)
    places, heights = pi_squared(sketch_of(u))
    squares = np.sort(u.numpy() ** 2)[::-1] / float(u.abs().max()) ** 2
    for place, height in list(zip(places, heights, strict=True))[5::60]:
        assert height == pytest.approx(squares[min(NUMEL - 1, round(place * NUMEL))], rel=0.1, abs=1e-3)
    assert heights[0] == 1


def test_zeros() -> None:
    shape = shape_of(sketch_of(torch.zeros(100)), 0.01)
    assert (shape.contraction, shape.bell, shape.dip) == (0, True, 0)
    assert all(verdict.holds for verdict in shape.verdicts.values())
