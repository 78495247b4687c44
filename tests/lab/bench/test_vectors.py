from __future__ import annotations

import math

import pytest
import torch
from tests.each import each

from gaussiank_lab.bench.operators import LAWS, Vectors, stored_residual

NUMEL = 200_000
KURTOSIS = {"normal": 3.0, "laplace": 6.0, "uniform": 1.8, "triangular": 2.4}


@each("law", LAWS)
def test_same_seed_same_vector(law: str) -> None:
    one, two, other = (LAWS[law](1001, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.dtype == torch.float32
    assert one.shape == (1001,)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@each("law", KURTOSIS)
def test_laws_have_their_shape(law: str) -> None:
    vector = LAWS[law](NUMEL, torch.Generator().manual_seed(0)).double()
    assert float(vector.mean()) == pytest.approx(0, abs=0.02)
    assert float((vector / vector.std()).pow(4).mean()) == pytest.approx(KURTOSIS[law], rel=0.05)


def test_student_t3_has_its_tail() -> None:
    vector = LAWS["student-t3"](NUMEL, torch.Generator().manual_seed(0)).abs()
    for limit, beyond in ((3.182446, 0.05), (5.840909, 0.01)):  # two-sided 5 % and 1 % points of three degrees
        assert float((vector > limit).double().mean()) == pytest.approx(beyond, rel=0.06)


def test_stored_residual_is_the_one_the_script_made() -> None:
    vector = stored_residual()
    assert vector.shape == (199_210,)  # FNN-3
    assert bool(torch.isfinite(vector).all())
    assert int((vector == 0).sum()) == 13
    wide = vector.double()
    assert float(((wide - wide.mean()) / wide.std()).pow(4).mean()) == pytest.approx(2.62, abs=0.01)


def test_residual_tiles_in_fresh_order_and_scale() -> None:
    sample = stored_residual()
    drawn = LAWS["residual"](3 * sample.numel() - 7, torch.Generator().manual_seed(1))
    sorted_sample = sample.sort().values
    scales = []
    for tile in drawn.split(sample.numel())[:2]:
        scale = float(tile.abs().max() / sample.abs().max())
        torch.testing.assert_close(tile.sort().values, sorted_sample * scale, rtol=1e-5, atol=0)
        assert not torch.allclose(tile, sample * scale)
        scales.append(scale)
    assert scales[0] != scales[1]
    assert all(0.5 <= scale <= 2 for scale in scales)
    assert LAWS["residual"](100, torch.Generator().manual_seed(1)).shape == (100,)


@each("law", LAWS)
def test_sums_follow_the_law(law: str) -> None:
    vectors, random = Vectors.draw(law, 5000, seed=3), torch.Generator().manual_seed(3)
    for side, scale in ((0, 1.0), (1, 1.03)):
        wanted = LAWS[law](5000, random) * scale
        torch.testing.assert_close(vectors.accumulated(side), wanted, rtol=1e-6, atol=0)
        torch.testing.assert_close(vectors.grads[side], wanted / 4, rtol=1e-6, atol=0)
        vectors.reset(side)
        assert torch.equal(vectors.residual, vectors.before[side])
        vectors.residual.zero_()
        assert math.isfinite(float(vectors.before[side].sum()))  # the copy was changed, not the original
        assert bool(vectors.before[side].any())
    assert vectors.numel == 5000
